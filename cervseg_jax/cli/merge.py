"""`cervseg-jax merge`."""

from pathlib import Path
from typing import Annotated

import typer

from cervseg_jax.cli.options import Quiet
from cervseg_jax.errors import ConfigError, FindingsError

EXAMPLE = "cervseg-jax merge found/part_* --out found"


def merge(
    folders: Annotated[list[Path], typer.Argument(metavar="OUT...", help="Output folders of the shards.")],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Folder for the tables. Default: the output folder, if it is only one."),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Join the tables of shards of `infer`.

    Writes images.csv, nuclei.csv, coco.json and failed.csv as one call would have. Files of single images stay in their
    folders.
    """
    if out is None and len(folders) > 1:
        raise ConfigError("merge: several folders need --out, the folder for the tables")
    from cervseg_jax.console import Reporter, short_path
    from cervseg_jax.segmentation.merge import merge_folders
    from cervseg_jax.storage.address import as_path

    folders, out = [as_path(folder) for folder in folders], None if out is None else as_path(out)
    target = folders[0] if out is None else out
    outcomes = merge_folders(folders, target, reporter=Reporter(quiet=quiet))
    num_failed = len(outcomes.failed)
    Reporter(quiet=quiet).info(f"{len(outcomes.done)} images of {len(folders)} folders: tables in {short_path(target)}")
    if num_failed:
        raise FindingsError(
            f"{num_failed} of {len(outcomes.done) + num_failed} images failed; see {short_path(target / 'failed.csv')}"
        )
