"""`compile`: the train step for a TPU that is not there."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cervseg_jax.bench.topology import compile_for, largest_batch
from cervseg_jax.config import load_config
from cervseg_jax.console import Reporter
from cervseg_jax.errors import FindingsError
from cervseg_jax.files import write_json


def run_compile(
    config_path: Path,
    topology: str,
    overrides: Sequence[str],
    *,
    find_largest: bool,
    json_path: Path | None,
    quiet: bool,
) -> None:
    """Compiles, prints and writes the figures.

    Raises:
      FindingsError: if the step does not fit.
    """
    reporter = Reporter(quiet=quiet)
    config = load_config(config_path, overrides)
    reporter.info(f"compiling the train step of {config_path} for {topology}; this can take minutes ...")
    facts = compile_for(config, topology)
    if find_largest and facts["fits"]:
        facts["largest_batch"] = largest_batch(config, topology, start=config.train.batch_size)
    if json_path is not None:
        write_json(json_path, facts)
    for name, value in _lines(facts):
        reporter.info(f"{name:<28}{value}")
    if not facts["fits"]:
        raise FindingsError(
            f"{config_path} does not fit on {topology}: {facts.get('needed', 'too much memory')}; try "
            "runtime.precision=bfloat16, runtime.remat=true, a larger train.grad_accum_steps, or more chips along "
            "runtime.mesh.spatial"
        )


def _lines(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    height, width = facts["image_size"]
    mesh = " x ".join(f"{axis} {size}" for axis, size in facts["mesh"].items())
    lines = [
        ("chips", f"{facts['chips']} of {facts['hosts']} hosts; mesh {mesh}"),
        ("batch", f"{facts['batch_size']} images of {height}x{width}, {facts['precision']}"),
    ]
    if "total_bytes" not in facts:
        return lines
    share = facts["total_bytes"] / facts["chip_bytes"]
    verdict = "fits" if facts["fits"] else "does not fit"
    lines += [
        ("weights, optimizer, batch", _gib(facts["arguments_bytes"])),
        ("activations and the like", _gib(facts["temporary_bytes"])),
        ("program, results", _gib(facts["program_bytes"] + facts["outputs_bytes"])),
        ("together, per chip", f"{_gib(facts['total_bytes'])} of {_gib(facts['chip_bytes'])} ({share:.1%}): {verdict}"),
        ("operations of a step", f"{facts['step_flops'] / 1e12:.2f} TFLOP on all chips"),
        ("compiled in", f"{facts['compile_seconds']:.0f} s"),
    ]
    for kind, entry in facts["collectives"].items():
        if kind != "large_gathers":
            lines.append((kind, f"{entry['count']}, {entry['bytes'] / 2**20:.1f} MiB per chip and step"))
    gathers = facts["collectives"]["large_gathers"]
    lines.append(("large arrays gathered", "; ".join(f"{n} x {shape}" for shape, n in gathers.items()) or "none"))
    if "largest_batch" in facts:
        lines.append(("largest batch that fits", str(facts["largest_batch"])))
    return lines


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"
