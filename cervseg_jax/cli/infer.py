"""`cervseg-jax infer`."""

import logging
from pathlib import Path
from typing import Annotated

import typer

from cervseg_jax.cli.options import (
    Ensemble,
    NucleusPx,
    Overrides,
    Quiet,
    RunArgument,
    Tiled,
    complete_output,
    nucleus_px_setting,
    pixel_size,
    tiled_setting,
)
from cervseg_jax.errors import ConfigError, FindingsError

EXAMPLE = "cervseg-jax infer runs/quickstart --images slides --out masks"


def infer(
    run: RunArgument,
    images: Annotated[list[Path], typer.Option(metavar="PATH", help="An image or a folder of images (repeatable).")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for the results.")],
    output: Annotated[
        list[str] | None,
        typer.Option(
            help="Outputs to write (repeatable, or separated by commas): masks, overlays, instances, nuclei, "
            "geojson, probabilities, color, coco, labelme, rois, or all. Default: the first five.",
            autocompletion=complete_output,
        ),
    ] = None,
    mpp: Annotated[
        float | None,
        typer.Option(
            callback=pixel_size,
            help="Micrometers per pixel; adds measurements in micrometers to the tables. "
            "Default: as TIFF files and slides state it.",
        ),
    ] = None,
    nucleus_px: NucleusPx = None,
    tiled: Tiled = None,
    ensemble: Ensemble = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Remove the results of earlier calls first.")] = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Continue an interrupted call; finished images are kept, changed ones done again."
        ),
    ] = False,
    overrides: Overrides = None,
    quiet: Quiet = False,
) -> None:
    """Segment images with a trained run.

    Writes masks, single nuclei, measurements and exports for QuPath, ImageJ and other programs.
    """
    if overwrite and resume:
        raise ConfigError("--overwrite and --resume cannot be used together")
    from cervseg_jax.console import Reporter, short_path
    from cervseg_jax.runs.bucket import local_copies
    from cervseg_jax.segmentation.folder import InferRequest, infer_files
    from cervseg_jax.segmentation.outputs import DEFAULT_OUTPUTS, OUTPUTS

    reporter = Reporter(quiet=quiet)
    names = _output_names(output or [])
    outputs = tuple(OUTPUTS) if "all" in names else names or DEFAULT_OUTPUTS
    with local_copies([run, *(ensemble or [])]) as (own, *others):
        request = InferRequest(
            own.folder,
            tuple(images),
            out,
            overrides=(*tiled_setting(tiled), *nucleus_px_setting(nucleus_px), *(overrides or [])),
            members=tuple(other.folder for other in others),
            outputs=outputs,
            mpp=mpp,
            overwrite=overwrite,
            resume=resume,
        )
        num_done, num_failed = infer_files(request, reporter=reporter)
    reporter.info(f"{num_done} images done: {', '.join(outputs)} and images.csv in {short_path(out)}")
    if num_failed:
        failed_csv = short_path(out / "failed.csv")
        raise FindingsError(f"{num_failed} of {num_done + num_failed} images failed; see {failed_csv}")


def _output_names(given: list[str]) -> tuple[str, ...]:
    """Splits comma-separated values and translates old names."""
    names = [name.strip() for text in given for name in text.split(",") if name.strip()]
    from cervseg_jax.segmentation.outputs import RENAMED_OUTPUTS

    for old, new in RENAMED_OUTPUTS.items():
        if old in names:
            logging.getLogger("cervseg_jax").warning("--output %s is now --output %s", old, new)
            names = [new if name == old else name for name in names]
    return tuple(dict.fromkeys(names))
