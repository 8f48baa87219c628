"""`cervseg-jax infer`."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cervseg_jax.cli.options import (
    Coordinator,
    Distributed,
    Ensemble,
    NucleusPx,
    NumProcesses,
    Overrides,
    ProcessId,
    Quiet,
    RunArgument,
    Tiled,
    complete_output,
    nucleus_px_setting,
    pixel_size,
    process_spec,
    shard_of,
    tiled_setting,
)
from cervseg_jax.errors import ConfigError, FindingsError

if TYPE_CHECKING:
    from cervseg_jax.console import Reporter
    from cervseg_jax.segmentation.folder import InferCounts

EXAMPLE = "cervseg-jax infer runs/quickstart --images slides --out masks"


Output = Annotated[
    list[str] | None,
    typer.Option(
        help="Outputs to write (repeatable, or separated by commas): masks, overlays, instances, nuclei, "
        "geojson, probabilities, color, coco, labelme, rois, instance_pyramids, probability_pyramids, or all. "
        "Default: the first five.",
        autocompletion=complete_output,
    ),
]
Mpp = Annotated[
    float | None,
    typer.Option(
        callback=pixel_size,
        help="Micrometers per pixel; adds measurements in micrometers to the tables. "
        "Default: as TIFF files and slides state it.",
    ),
]
ShardText = Annotated[
    str | None,
    typer.Option(
        metavar="K/N",
        help="Do one of N parts of the images, for an array of jobs: K from 1 to N. Which part an image belongs to "
        "follows from a hash of its file name alone. `cervseg-jax merge` joins the tables of separate folders.",
    ),
]
Resume = Annotated[
    bool,
    typer.Option("--resume", help="Continue an interrupted call; finished images are kept, changed ones done again."),
]


def infer(
    run: RunArgument,
    images: Annotated[list[Path], typer.Option(metavar="PATH", help="An image or a folder of images (repeatable).")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for the results.")],
    output: Output = None,
    mpp: Mpp = None,
    nucleus_px: NucleusPx = None,
    tiled: Tiled = None,
    ensemble: Ensemble = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Remove the results of earlier calls first.")] = False,
    resume: Resume = False,
    shard: ShardText = None,
    distributed: Distributed = False,
    coordinator: Coordinator = None,
    num_processes: NumProcesses = None,
    process_id: ProcessId = None,
    overrides: Overrides = None,
    quiet: Quiet = False,
) -> None:
    """Segment images with a trained run.

    Writes masks, single nuclei, measurements and exports for QuPath, ImageJ and other programs.
    """
    if overwrite and resume:
        raise ConfigError("--overwrite and --resume cannot be used together")
    part = shard_of(shard)
    processes = process_spec(distributed, coordinator, num_processes, process_id)
    from cervseg_jax.console import Reporter
    from cervseg_jax.runs.bucket import local_copies
    from cervseg_jax.segmentation.folder import InferRequest, infer_files
    from cervseg_jax.segmentation.outputs import DEFAULT_OUTPUTS, installed_outputs
    from cervseg_jax.storage.address import as_path

    out = as_path(out)
    reporter = Reporter(quiet=quiet)
    names = _output_names(output or [])
    outputs = installed_outputs() if "all" in names else names or DEFAULT_OUTPUTS
    with local_copies([run, *(ensemble or [])]) as (own, *others):
        request = InferRequest(
            own.folder,
            tuple(map(as_path, images)),
            out,
            overrides=(*tiled_setting(tiled), *nucleus_px_setting(nucleus_px), *(overrides or [])),
            members=tuple(other.folder for other in others),
            outputs=outputs,
            mpp=mpp,
            overwrite=overwrite,
            resume=resume,
            shard=part,
            processes=processes,
        )
        counts = infer_files(request, reporter=reporter)
    _report(counts, out, outputs, reporter)


def _report(counts: "InferCounts", out: Path, outputs: Sequence[str], reporter: "Reporter") -> None:
    """Prints rates and counts, and raises an error if images failed."""
    from cervseg_jax.console import short_path

    who = "" if counts.process is None else f"process {counts.process}: "
    reporter.info(f"{who}{counts.throughput.describe()}")
    if counts.num_left:
        reporter.info(
            f"{who}{counts.num_left} images of other processes or shards are not done yet; the last one in this folder "
            "writes images.csv and the other tables, or `cervseg-jax merge`"
        )
        if counts.num_failed:
            raise FindingsError(f"{counts.num_failed} images failed, see above")
        return
    reporter.info(f"{who}{counts.num_done} images done: {', '.join(outputs)} and images.csv in {short_path(out)}")
    if counts.num_failed:
        failed_csv = short_path(out / "failed.csv")
        raise FindingsError(
            f"{counts.num_failed} of {counts.num_done + counts.num_failed} images failed; see {failed_csv}"
        )


def _output_names(given: list[str]) -> tuple[str, ...]:
    """Splits comma-separated values and translates old names."""
    names = [name.strip() for text in given for name in text.split(",") if name.strip()]
    from cervseg_jax.segmentation.outputs import RENAMED_OUTPUTS

    for old, new in RENAMED_OUTPUTS.items():
        if old in names:
            logging.getLogger("cervseg_jax").warning("--output %s is now --output %s", old, new)
            names = [new if name == old else name for name in names]
    return tuple(dict.fromkeys(names))
