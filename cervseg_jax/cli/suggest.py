"""`cervseg-jax suggest`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cervseg_jax.cli.options import (
    MAX_SIDE_PX,
    DecisionsOption,
    NucleusPx,
    Overrides,
    Quiet,
    RunArgument,
    Tiled,
    nucleus_px_setting,
    tiled_setting,
)
from cervseg_jax.errors import FindingsError, first_few

if TYPE_CHECKING:
    from cervseg_jax.console import Reporter
    from cervseg_jax.suggestions.suggest import Suggested

EXAMPLE = "cervseg-jax suggest runs/first --images pool --count 10 --out todo"


def suggest(
    run: RunArgument,
    images: Annotated[list[Path], typer.Option(metavar="PATH", help="An image or a folder of images (repeatable).")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for images and pre-annotations.")],
    count: Annotated[int, typer.Option(min=1, max=100_000, help="Number of images or crops to suggest.")] = 10,
    crop_px: Annotated[
        int,
        typer.Option(
            min=64, max=MAX_SIDE_PX, help="Side of crops in pixels; images of more than twice that are cut into crops."
        ),
    ] = 512,
    decisions: DecisionsOption = None,
    nucleus_px: NucleusPx = None,
    tiled: Tiled = None,
    overrides: Overrides = None,
    quiet: Quiet = False,
) -> None:
    """Choose the images worth annotating next.

    Takes uncertain images that differ from each other and from the training images, and writes them with
    pre-annotations for LabelMe. `cervseg-jax prepare FOLDER --add-to DATASET` adds them once they are corrected.
    """
    from cervseg_jax.console import Reporter
    from cervseg_jax.runs.bucket import local_copy
    from cervseg_jax.suggestions.suggest import SuggestRequest, suggest_images

    reporter = Reporter(quiet=quiet)
    with local_copy(run) as own:
        request = SuggestRequest(
            own.folder,
            tuple(images),
            out,
            count,
            crop_px,
            decisions,
            overrides=(*tiled_setting(tiled), *nucleus_px_setting(nucleus_px), *(overrides or [])),
        )
        suggested = suggest_images(request, reporter=reporter)
    _report(suggested, out, count, reporter)


def _report(suggested: "Suggested", out: Path, count: int, reporter: "Reporter") -> None:
    """Prints what was chosen and left out, and raises an error if files could not be read."""
    from cervseg_jax.console import short_path

    for reason, names in sorted(suggested.left_out.items()):
        reporter.info(f"left out, {reason}: {len(names)} ({first_few(names, limit=5)})")
    for failure in suggested.failures:
        reporter.warn(failure.reason)
    for suggestion in suggested.suggestions:
        reporter.info(f"{suggestion.order:3d}  {suggestion.image}  {suggestion.reason}")
    kept = suggested.written.kept
    if kept:
        reporter.warn(f"{len(kept)} annotations were changed by hand and are kept as they are: {first_few(kept)}")
    num = len(suggested.suggestions)
    if num < count:
        reporter.warn(f"only {num} of {count} images: the pool has no more that are new")
    folder = short_path(out)
    reporter.info(f"{num} images with pre-annotations, and suggestions.csv, in {folder}")
    if num:
        reporter.info(f"next: labelme {folder}; then cervseg-jax prepare {folder} --add-to DATASET")
    if suggested.failures:
        raise FindingsError(f"{len(suggested.failures)} files of the pool cannot be used, see above")
