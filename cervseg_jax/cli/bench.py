"""`cervseg-jax bench`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from cervseg_jax.cli.options import JsonFile, Overrides, Quiet, complete_config
from cervseg_jax.errors import ConfigError

EXAMPLE = "cervseg-jax bench quickstart --against keras"

COLUMNS = ("", "s per batch", "range", "images/s", "GFLOP/s", "of the product")


def bench(
    config: Annotated[
        Path | None,
        typer.Argument(
            help="A YAML file or a recipe. Default: the published U-Net at 256x256 with six levels.",
            autocompletion=complete_config,
        ),
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Also time keras (`Model.fit`) or torch (an equivalent U-Net); repeatable."),
    ] = None,
    precision: Annotated[str | None, typer.Option(help="float32 or bfloat16. Default: both.")] = None,
    infer: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Time inference on these images instead; the first argument is then a run or built-in weights. "
            "Default: pap.",
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, max=10_000, help="Number of interleaved repetitions.")] = 5,
    json_path: JsonFile = None,
    overrides: Overrides = None,
    quiet: Quiet = False,
) -> None:
    """Measure the speed of this machine.

    Times training, prediction and the input pipeline, interleaved so that machine load affects all equally.
    """
    if infer is not None:
        if against or precision is not None:
            raise ConfigError("bench: --infer cannot be used with --against or --precision")
        _bench_inference(config or Path("pap"), infer, rounds, json_path, tuple(overrides or ()), quiet=quiet)
        return
    import copy

    from cervseg_jax.bench.baselines import BASELINES, installed_baselines
    from cervseg_jax.bench.run import DEFAULT_RECIPE, PRECISIONS, measure_all
    from cervseg_jax.components import lookup
    from cervseg_jax.config import build_config, load_config
    from cervseg_jax.console import Reporter
    from cervseg_jax.files import write_json
    from cervseg_jax.runtime.mesh import require_devices

    for name in against or ():
        lookup(BASELINES, name, key="--against")
    if precision is not None:
        lookup(dict.fromkeys(PRECISIONS), precision, key="--precision")
    if config is None:
        checked = build_config(copy.deepcopy(DEFAULT_RECIPE), overrides or (), folder=Path.cwd(), source="bench")
    else:
        checked = load_config(config, overrides or ())
    require_devices(checked.runtime)
    measured = measure_all(
        checked,
        against=installed_baselines(against or ()),
        precisions=PRECISIONS if precision is None else (precision,),
        rounds=rounds,
        reporter=Reporter(quiet=quiet),
    )
    if json_path is not None:
        write_json(json_path, measured)
    print("\n".join(_table_lines(measured)))


def _bench_inference(
    run: Path, images: Path, rounds: int, json_path: Path | None, overrides: tuple[str, ...], *, quiet: bool
) -> None:
    from cervseg_jax.bench.inference import measure_inference
    from cervseg_jax.console import Reporter
    from cervseg_jax.files import write_json
    from cervseg_jax.runs.bucket import local_copies

    with local_copies([run]) as (own,):
        measured = measure_inference(
            own.folder, images, overrides=overrides, rounds=rounds, reporter=Reporter(quiet=quiet)
        )
    if json_path is not None:
        write_json(json_path, measured)
    first = measured["rounds"][0]
    print(
        f"{first['num_images']} images, {first['megapixels']:.1f} megapixels; {', '.join(measured['outputs'])}; "
        f"{measured['num_devices']} x {measured['device']}; jax {measured['jax']}\n"
    )
    shares = list(first["shares"])
    print("| round | seconds | images/s | megapixels/s | " + " | ".join(shares) + " |\n|" + "---|" * (4 + len(shares)))
    for number, row in enumerate(measured["rounds"], start=1):
        rates = (f"{row['images_per_second']:.2f}", f"{row['megapixels_per_second']:.3f}")
        cells = (str(number), f"{row['seconds']:.1f}", *rates, *(f"{row['shares'][name]:.0%}" for name in shares))
        print("| " + " | ".join(cells) + " |")


def _table_lines(facts: Mapping[str, Any]) -> list[str]:
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
            f"{known['step_flops'] / 1e9:.0f} GFLOP and {known['temporary_bytes'] / 2**20:.0f} MiB per step"
        )
    lines.append(f"peak memory of the process: {facts['peak_memory_bytes'] / 2**30:.2f} GiB")
    return lines
