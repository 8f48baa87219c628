"""Compiling for TPUs; the real compiler under its own marker."""

import json
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from cervseg_jax.bench import topology
from cervseg_jax.cli import compile as compile_command
from cervseg_jax.errors import ConfigError
from cervseg_jax.extras import install_command
from cervseg_jax.runtime.mesh import make_mesh
from cervseg_jax.schema import MeshConfig


def test_collectives_of_a_real_module():
    """A row-sharded convolution exchanges two halos; asking for a whole array gathers it."""
    mesh = make_mesh(MeshConfig(spatial=8), batch_size=1)
    rows, whole = NamedSharding(mesh, PartitionSpec(None, "spatial")), NamedSharding(mesh, PartitionSpec())

    def blurred(image):
        return jax.lax.conv_general_dilated(
            image, jnp.ones((3, 3, 1, 1)), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    shape = jax.ShapeDtypeStruct((1, 512, 1024, 1), jnp.float32)
    texts = [
        jax.jit(blurred, in_shardings=rows, out_shardings=out).lower(shape).compile().as_text() for out in (rows, whole)
    ]
    found = [topology.collectives(text) for text in texts]
    assert found[0]["collective-permute"] == {"count": 2, "bytes": 2 * 1024 * 4}
    assert found[0]["large_gathers"] == {}
    assert found[1]["all-gather"] == {"count": 1, "bytes": 512 * 1024 * 4}
    assert found[1]["large_gathers"] == {"f32[1,512,1024,1]": 1}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v9:2x2", "unknown name 'v9'"),
        ("v5e:2x2x2", "v5e has 2 axes of chips, such as v5e:2x4"),
        ("v5p:2x4", "v5p has 3 axes of chips, such as v5p:2x2x1"),
        ("v5e:2xfour", "v5e has 2 axes"),
        ("v5e", "v5e has 2 axes"),
    ],
)
def test_wrong_topologies_are_named(name, message, monkeypatch):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda _: True)
    with pytest.raises(ConfigError, match=message):
        topology.topology_devices(name)


def test_without_the_compiler_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=re.escape(install_command("tpu-compile"))):
        topology.topology_devices("v5e:2x4")


def facts_of_step(*, total, cycles):
    return {
        **dict.fromkeys(("arguments_bytes", "temporary_bytes", "program_bytes", "outputs_bytes"), 0),
        **{"chips": 8, "hosts": 2, "mesh": {"data": 8}, "batch_size": 8, "image_size": [64, 64]},
        **{"precision": "float32", "total_bytes": total, "chip_bytes": 16 * 2**30, "fits": total <= 16 * 2**30},
        **{"step_flops": 1e12, "compile_seconds": 1.0, "collectives": {"large_gathers": {}}},
        "cycles": {"total": sum(cycles.values()), "by_layer": cycles},
        "matrix_share": 0.125,
    }


@pytest.mark.parametrize(("total", "verdict"), [(15 * 2**30, "(93.8%): fits"), (16 * 2**30 + 1, "does not fit")])
def test_the_verdict_follows_the_memory(total, verdict):
    rows = dict(compile_command._rows(facts_of_step(total=total, cycles={"conv1": 2_500_000})))
    assert rows["total per chip"].endswith(verdict)
    assert rows["estimated cycles per step"] == "2.5 million per chip"
    assert rows["operations per cycle"] == "12.5% of a large matrix product's"


def test_forms_stand_side_by_side():
    chosen = facts_of_step(total=2**30, cycles={"conv1": 2_000_000, "conv2": 500_000})
    too_large = {key: chosen[key] for key in ("chips", "hosts", "mesh", "batch_size", "image_size", "precision")}
    plain = facts_of_step(total=2**31, cycles={"conv2": 8_000_000, "conv3": 1_000_000})
    (line,) = [x for x in compile_command._table({"chosen": chosen}, verbose=False) if x.startswith("estimated")]
    assert line.split("  ")[-1].strip() == "2.5 million per chip"
    header, *lines = compile_command._table({"chosen": chosen, "plain": plain}, verbose=True)
    assert header.split() == ["chosen", "plain"]
    second = header.index("plain")
    cells = {line[:28].strip(): (line[28:second].strip(), line[second:].strip()) for line in lines}
    assert cells["conv1"] == ("2.00 million cycles", "-")
    assert cells["conv2"] == ("0.50 million cycles", "8.00 million cycles")
    assert cells["conv3"] == ("-", "1.00 million cycles")
    assert all(line[second - 2 : second] == "  " != line[second : second + 2] for line in lines)
    header, *lines = compile_command._table({"chosen": chosen, "plain": too_large}, verbose=False)
    assert "total per chip" in {line[:28].strip() for line in lines}


@pytest.mark.tpu_compile
@pytest.mark.parametrize(
    ("name", "settings", "hosts"),
    [
        ("v5e:2x4", (), 2),
        ("v5e:2x2", ("runtime.precision=bfloat16",), 1),
        ("v4:2x2x1", (), 1),
        ("v5p:2x2x2", ("train.batch_size=8",), 2),
        ("v6e:1x1", ("train.grad_accum_steps=2", "runtime.remat=true"), 1),
        ("v5e:2x4", ("runtime.mesh={data: 2, fsdp: 2, spatial: 2}",), 2),
    ],
)
def test_the_real_step_compiles_for_tpus(name, settings, hosts, tiny_config, tmp_path):
    pytest.importorskip("libtpu", reason="the extra tpu-compile is not installed")
    arguments = ["compile", tiny_config, "--topology", name, "--json", tmp_path / "facts.json"]
    for setting in ("model.image_size=[256, 256]", *settings):
        arguments += ["--set", setting]
    environment = {key: value for key, value in os.environ.items() if key not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    program = "from cervseg_jax.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert (facts["fits"], facts["hosts"]) == (True, hosts)
    assert facts["step_flops"] > 1e8
    assert facts["collectives"]["large_gathers"] == {}
    if facts["mesh"]["spatial"] > 1:
        assert facts["collectives"]["collective-permute"]["count"] > 10
