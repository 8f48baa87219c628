"""Compilation of the train step for a TPU topology, without TPU hardware."""

import importlib.util
import math
import os
import re
import time
from collections import Counter, defaultdict
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cervseg_jax.bench.cycles import estimated_cycles
from cervseg_jax.components import lookup
from cervseg_jax.engine.experiment import build_experiment
from cervseg_jax.errors import ConfigError, first_line
from cervseg_jax.extras import install_command
from cervseg_jax.models import Backend
from cervseg_jax.runtime.mesh import make_mesh
from cervseg_jax.schema import Config, MeshConfig


class Chip(NamedTuple):
    """A TPU generation."""

    memory_gib: float
    """Memory of a chip."""
    config: str
    """The compiler's name for the configuration in which all cores of a chip are one device."""


CHIPS = {
    "v4": Chip(32, "megacore"),
    "v5e": Chip(16, "default"),
    "v5p": Chip(95, "megacore"),
    "v6e": Chip(32, "default"),
}
"""Sizes from the page of each generation in cloud.google.com/tpu/docs."""
OFFLINE_VARIABLES = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
}
"""Keep the compiler from locking a TPU, from querying the cloud's metadata server and warning about it."""
FORMS: dict[str, Backend] = {"plain": "xla"}
"""Forms of the layers that others can be compared with."""
PRODUCT_SIZE = 2048
"""Side of the matrices whose product shows how many operations a cycle the matrix units can do."""
LARGE_GATHER_BYTES = 2**20
"""Larger all-gathers are listed by shape."""
_COLLECTIVE = re.compile(
    r"= (?P<shapes>[^=]*?) (?P<kind>all-gather|all-reduce|collective-permute|all-to-all|reduce-scatter)(?:-start)?\("
)
_CHANNEL = re.compile(r"channel_id=(\d+)")
_SHAPE = re.compile(r"(?P<type>[a-z]+[0-9]+)\[(?P<sizes>[0-9,]*)\]")


def compile_for(config: Config, topology: str, *, backend: Backend | None = None) -> dict[str, Any]:
    """Compiles a recipe's train step for a TPU topology.

    Args:
      config: the recipe.
      topology: generation and chips along each axis, such as "v5e:2x4".
      backend: what the layers are built for; None takes what training on these chips would.

    Returns:
      A summary as JSON values: chips, hosts, mesh, bytes per chip by purpose, whether they fit, operations,
      collectives, estimated cycles in total and by layer, operations per cycle as a share of `product_rate`.

    Raises:
      ConfigError: if the TPU compiler is not installed or does not know the topology.
    """
    chip, devices = topology_devices(topology)
    experiment = build_experiment(config, devices, backend=backend)
    start = time.monotonic()
    lowered = experiment.lower_train_step()
    summary: dict[str, Any] = {
        "topology": topology,
        "chips": len(devices),
        "hosts": len({device.process_index for device in devices}),
        "mesh": dict(experiment.mesh.shape),
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
        return {**summary, "fits": False, "needed": _memory_message(str(error))}
    seconds = round(time.monotonic() - start, 1)
    memory: Any = compiled.memory_analysis()
    used = {
        "arguments_bytes": memory.argument_size_in_bytes,
        "outputs_bytes": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "program_bytes": memory.generated_code_size_in_bytes,
    }
    total = sum(used.values())
    program = compiled.as_text() or ""
    layers = {path.split("/")[0] for path in experiment.params}
    # The TPU compiler does not count operations; the local backend does.
    local_mesh = make_mesh(MeshConfig(), batch_size=config.train.batch_size)
    step_flops = replace(experiment, mesh=local_mesh).step_flops()
    cycles = estimated_cycles(program, layers)
    return {
        **summary,
        **used,
        "total_bytes": total,
        "fits": total <= summary["chip_bytes"],
        "step_flops": step_flops,
        "collectives": collectives(program),
        "cycles": cycles.to_json(),
        "matrix_share": step_flops / experiment.mesh.size / (cycles.total * product_rate(devices[0])),
        "compile_seconds": seconds,
    }


def largest_batch(config: Config, topology: str, *, start: int) -> int:
    """Returns the largest batch size that fits, among `start` times the powers of two.

    Args:
      config: the recipe.
      topology: as for `compile_for`.
      start: a batch size that fits.
    """
    batch_size = start
    while True:
        train = config.train.model_copy(update={"batch_size": 2 * batch_size})
        if not compile_for(config.model_copy(update={"train": train}), topology)["fits"]:
            return batch_size
        batch_size *= 2


def product_rate(device: Any) -> float:
    """Returns the floating-point operations per cycle that the compiler expects of a product of large matrices.

    Args:
      device: a chip of a topology.
    """
    sharding = jax.sharding.SingleDeviceSharding(device)
    matrix = jax.ShapeDtypeStruct((PRODUCT_SIZE, PRODUCT_SIZE), "bfloat16", sharding=sharding)
    compiled = jax.jit(jnp.matmul).lower(matrix, matrix).compile()
    return 2 * PRODUCT_SIZE**3 / estimated_cycles(compiled.as_text() or "", set()).total


def topology_devices(topology: str) -> tuple[Chip, list[Any]]:
    """Returns the chip of a topology and its devices, which programs can be compiled for but not run on.

    Args:
      topology: as for `compile_for`.

    Raises:
      ConfigError: as `compile_for`.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(f"compile: needs the TPU compiler: {install_command('tpu-compile')}")
    name, _, shape = topology.partition(":")
    chip = lookup(CHIPS, name, key="--topology")
    sizes = [int(size) for size in shape.split("x")] if re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", shape) else []
    num_axes = 3 if name in ("v4", "v5p") else 2
    if len(sizes) != num_axes:
        example = f"{name}:2x2x1" if num_axes == 3 else f"{name}:2x4"
        raise ConfigError(f"--topology: {name} has {num_axes} axes of chips, such as {example}; got {topology!r}")
    for variable, value in OFFLINE_VARIABLES.items():
        os.environ.setdefault(variable, value)
    jax.config.update("jax_enable_compilation_cache", False)  # programs for absent devices cannot be loaded from it
    from jax.experimental import topologies

    bounds = {"chips_per_host_bounds": (1, 1, 1)} if math.prod(sizes) == 1 else {}
    try:
        description = topologies.get_topology_desc(
            platform="tpu", topology_name=topology, chip_config_name=chip.config, **bounds
        )
    except Exception as error:  # noqa: BLE001 (the compiler raises types of its own)
        raise ConfigError(f"--topology: {topology}: {first_line(error)}") from None
    return chip, list(description.devices)


def collectives(program: str) -> dict[str, Any]:
    r"""Counts the collective operations in a compiled program.

    Args:
      program: the text of the module after partitioning.

    Returns:
      For each kind the number of operations and the bytes of their results on a device; under `large_gathers` the
      number of all-gathers of more than 1 MiB by shape. All-gathers of activations mean that an operation fell back to
      whole images.

    Example:
      >>> line = "%a = f32[2,8]{1,0} collective-permute(%b), channel_id=1"
      >>> collectives(f"{line}\n{line}")["collective-permute"]
      {'count': 1, 'bytes': 64}
    """
    counted: dict[str, dict[str, int]] = defaultdict(lambda: {"count": 0, "bytes": 0})
    program += "\n"
    large: Counter[str] = Counter()
    seen = set()
    for match in _COLLECTIVE.finditer(program):
        # The TPU compiler repeats an asynchronous collective in each computation that overlaps with it.
        channel = _CHANNEL.search(program, match.end(), program.index("\n", match.end()))
        if channel is not None:
            if (match["kind"], channel[1]) in seen:
                continue
            seen.add((match["kind"], channel[1]))
        sizes = [_num_bytes(*shape) for shape in _SHAPE.findall(match["shapes"])]
        if not sizes:
            continue
        # The start of an asynchronous collective also returns its operand.
        size = max(sizes) if "-start(" in match[0] else sum(sizes)
        entry = counted[match["kind"]]
        entry["count"] += 1
        entry["bytes"] += size
        if match["kind"] == "all-gather" and size > LARGE_GATHER_BYTES:
            large["; ".join(shape[0] for shape in _SHAPE.finditer(match["shapes"]))] += 1
    return {**dict(sorted(counted.items())), "large_gathers": dict(large)}


def _num_bytes(kind: str, sizes: str) -> int:
    bits = 8 if kind == "pred" else int(re.sub(r"\D", "", kind))
    return int(np.prod([int(size) for size in sizes.split(",") if size], dtype=np.int64)) * bits // 8


def _memory_message(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if "hbm" in line.lower() or "memory" in line.lower()]
    return lines[0] if lines else text.strip().splitlines()[0]
