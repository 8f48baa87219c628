"""`bench`: how fast this machine is with a recipe, beside other programs."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cervseg_jax.bench.baselines import BASELINES, installed_baselines
from cervseg_jax.bench.run import DEFAULT_RECIPE, PRECISIONS, measure_all
from cervseg_jax.components import lookup
from cervseg_jax.config import build_config, load_config
from cervseg_jax.console import Reporter
from cervseg_jax.files import write_json
from cervseg_jax.runtime.mesh import require_devices

COLUMNS = ("", "s per batch", "range", "images/s", "GFLOP/s", "of the product")


def run_bench(
    config_path: Path | None,
    overrides: Sequence[str],
    *,
    against: Sequence[str],
    precision: str | None,
    rounds: int,
    json_path: Path | None,
    quiet: bool,
) -> None:
    """Measures, prints a table and writes the figures.

    Raises:
      ConfigError: for an unknown precision or another program that is unknown or not installed.
    """
    for name in against:
        lookup(BASELINES, name, key="--against")
    if precision is not None:
        lookup(dict.fromkeys(PRECISIONS), precision, key="--precision")
    reporter = Reporter(quiet=quiet)
    if config_path is None:
        config = build_config(copy.deepcopy(DEFAULT_RECIPE), overrides, folder=Path.cwd(), source="bench")
    else:
        config = load_config(config_path, overrides)
    require_devices(config.runtime)
    facts = measure_all(
        config,
        against=installed_baselines(against),
        precisions=PRECISIONS if precision is None else (precision,),
        rounds=rounds,
        reporter=reporter,
    )
    if json_path is not None:
        write_json(json_path, facts)
    print("\n".join(_lines(facts)))


def _lines(facts: Mapping[str, Any]) -> list[str]:
    height, width = facts["image_size"]
    lines = [
        f"{facts['model']}, {facts['batch_size']} images of {height}x{width}; {facts['num_devices']} x "
        f"{facts['device']}; jax {facts['jax']}",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|" + "---|" * len(COLUMNS),
    ]
    for name, row in facts["rows"].items():
        rate = f"{row['flops_per_second'] / 1e9:.0f}" if "flops_per_second" in row else ""
        share = f"{row['share_of_ceiling']:.0%}" if "share_of_ceiling" in row else ""
        images = "" if name.startswith("matrix") else f"{row['images_per_second']:.2f}"
        cells = (name, f"{row['seconds']:.4f}", f"{row['fastest']:.4f}-{row['slowest']:.4f}", images, rate, share)
        lines.append("| " + " | ".join(cells) + " |")
    lines.append("")
    for precision, known in facts["compiled"].items():
        lines.append(
            f"{precision}: traced in {known['trace_seconds']:.1f} s, compiled in {known['compile_seconds']:.1f} s; "
            f"{known['step_flops'] / 1e9:.0f} GFLOP and {known['temporary_bytes'] / 2**20:.0f} MiB a step"
        )
    lines.append(f"most memory that the process held: {facts['peak_memory_bytes'] / 2**30:.2f} GiB")
    return lines
