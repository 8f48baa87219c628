"""The train step compiled for a TPU that is not there."""

import importlib.util
import math
import os
import re
import time
from collections import Counter, defaultdict
from typing import Any, NamedTuple

import jax
import numpy as np

from cervseg_jax.components import lookup
from cervseg_jax.engine.experiment import configured_network, configured_optimizer, lower_train_step, step_flops
from cervseg_jax.engine.state import create_state
from cervseg_jax.errors import ConfigError
from cervseg_jax.models import backend_for
from cervseg_jax.runtime.mesh import make_mesh
from cervseg_jax.schema import Config, MeshConfig


class Chip(NamedTuple):
    """A generation of TPUs."""

    memory_gib: float
    """Of each chip."""
    config: str
    """The compiler's name of the way that its cores are used: all as one device."""


CHIPS = {
    "v4": Chip(32, "megacore"),
    "v5e": Chip(16, "default"),
    "v5p": Chip(95, "megacore"),
    "v6e": Chip(32, "default"),
}
"""From cloud.google.com/tpu/docs, the page of each generation."""
QUIET = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
}
"""Keeps the compiler from locking a TPU, and from asking the cloud where it runs and complaining about the answer."""
LARGE_GATHER_BYTES = 2**20
"""All-gathers of more are named."""
_COLLECTIVE = re.compile(
    r"= (?P<shapes>[^=]*?) (?P<kind>all-gather|all-reduce|collective-permute|all-to-all|reduce-scatter)(?:-start)?\("
)
_CHANNEL = re.compile(r"channel_id=(\d+)")
_SHAPE = re.compile(r"(?P<type>[a-z]+[0-9]+)\[(?P<sizes>[0-9,]*)\]")


def compile_for(config: Config, topology: str) -> dict[str, Any]:
    """Compiles a recipe's train step for a TPU topology.

    Args:
      config: the recipe.
      topology: generation and chips along each axis, such as "v5e:2x4".

    Returns:
      Facts: chips, hosts, mesh, bytes per chip by purpose, whether they fit, operations, collectives.

    Raises:
      ConfigError: if the compiler for TPUs is not installed, or knows no such topology.
    """
    chip, devices = topology_devices(topology)
    mesh = make_mesh(
        config.runtime.mesh,
        batch_size=config.train.batch_size // config.train.grad_accum_steps,
        height=config.model.image_size[0],
        devices=devices,
    )
    apply, params, model_state = configured_network(config, backend=backend_for(mesh))
    optimizer = configured_optimizer(config)
    with_ema = config.train.ema_decay is not None
    state = jax.eval_shape(lambda: create_state(params, model_state, optimizer, with_ema=with_ema))
    start = time.monotonic()
    lowered = lower_train_step(config, apply, optimizer, state, mesh)
    facts: dict[str, Any] = {
        "topology": topology,
        "chips": len(devices),
        "hosts": len({device.process_index for device in devices}),
        "mesh": dict(mesh.shape),
        "batch_size": config.train.batch_size,
        "image_size": list(config.model.image_size),
        "precision": config.runtime.precision,
        "chip_bytes": int(chip.memory_gib * 2**30),
    }
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {**facts, "fits": False, "needed": _memory_message(str(error))}
    seconds = round(time.monotonic() - start, 1)
    memory: Any = compiled.memory_analysis()
    used = {
        "arguments_bytes": memory.argument_size_in_bytes,
        "outputs_bytes": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "program_bytes": memory.generated_code_size_in_bytes,
    }
    total = sum(used.values())
    # The compiler for TPUs does not count.
    here = make_mesh(MeshConfig(), batch_size=config.train.batch_size)
    return {
        **facts,
        **used,
        "total_bytes": total,
        "fits": total <= facts["chip_bytes"],
        "step_flops": step_flops(config, optimizer, state, here),
        "collectives": collectives(compiled.as_text() or ""),
        "compile_seconds": seconds,
    }


def largest_batch(config: Config, topology: str, *, start: int) -> int:
    """Returns the largest batch that fits, of `start` times a power of two.

    Args:
      config: the recipe.
      topology: as for `compile_for`.
      start: a batch size that fits.

    Returns:
      The batch size.
    """
    batch_size = start
    while True:
        train = config.train.model_copy(update={"batch_size": 2 * batch_size})
        if not compile_for(config.model_copy(update={"train": train}), topology)["fits"]:
            return batch_size
        batch_size *= 2


def topology_devices(topology: str) -> tuple[Chip, list[Any]]:
    """Returns the chip of a topology and its devices, none of which is there.

    Args:
      topology: as for `compile_for`.

    Raises:
      ConfigError: likewise.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError("compile: needs the compiler for TPUs: pip install 'cervseg-jax[tpu-compile]'")
    name, _, shape = topology.partition(":")
    chip = lookup(CHIPS, name, key="--topology")
    sizes = [int(size) for size in shape.split("x")] if re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", shape) else []
    wanted_axes = 3 if name in ("v4", "v5p") else 2
    if len(sizes) != wanted_axes:
        example = f"{name}:2x2x1" if wanted_axes == 3 else f"{name}:2x4"
        raise ConfigError(f"--topology: {name} has {wanted_axes} axes of chips, such as {example}; got {topology!r}")
    for variable, value in QUIET.items():
        os.environ.setdefault(variable, value)
    from jax.experimental import topologies

    bounds = {"chips_per_host_bounds": (1, 1, 1)} if math.prod(sizes) == 1 else {}
    try:
        description = topologies.get_topology_desc(
            platform="tpu", topology_name=topology, chip_config_name=chip.config, **bounds
        )
    except Exception as error:  # noqa: BLE001 (the compiler's own types)
        raise ConfigError(f"--topology: {topology}: {str(error).strip().splitlines()[0]}") from None
    return chip, list(description.devices)


def collectives(program: str) -> dict[str, Any]:
    r"""Counts what the devices send each other in a compiled program.

    Args:
      program: the text of the module after partitioning.

    Returns:
      By kind: how many, and the bytes of their results on a device; `large_gathers`: by shape, how many all-gathers
      beyond 1 MiB. Those of activations mean that an operation fell back to whole images.

    Example:
      >>> line = "%a = f32[2,8]{1,0} collective-permute(%b), channel_id=1"
      >>> collectives(f"{line}\n{line}")["collective-permute"]
      {'count': 1, 'bytes': 64}
    """
    found: dict[str, dict[str, int]] = defaultdict(lambda: {"count": 0, "bytes": 0})
    program += "\n"
    large: Counter[str] = Counter()
    seen = set()
    for match in _COLLECTIVE.finditer(program):
        # The compiler for TPUs repeats an exchange in each computation that goes on while it lasts.
        channel = _CHANNEL.search(program, match.end(), program.index("\n", match.end()))
        if channel is not None:
            if (match["kind"], channel[1]) in seen:
                continue
            seen.add((match["kind"], channel[1]))
        sizes = [_num_bytes(*shape) for shape in _SHAPE.findall(match["shapes"])]
        if not sizes:
            continue
        # An asynchronous start returns its operand as well.
        size = max(sizes) if "-start(" in match[0] else sum(sizes)
        entry = found[match["kind"]]
        entry["count"] += 1
        entry["bytes"] += size
        if match["kind"] == "all-gather" and size > LARGE_GATHER_BYTES:
            large["; ".join(shape[0] for shape in _SHAPE.finditer(match["shapes"]))] += 1
    return {**dict(sorted(found.items())), "large_gathers": dict(large)}


def _num_bytes(kind: str, sizes: str) -> int:
    bits = 8 if kind == "pred" else int(re.sub(r"\D", "", kind))
    return int(np.prod([int(size) for size in sizes.split(",") if size], dtype=np.int64)) * bits // 8


def _memory_message(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if "hbm" in line.lower() or "memory" in line.lower()]
    return lines[0] if lines else text.strip().splitlines()[0]
