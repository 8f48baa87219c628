"""`cervseg-jax stats`."""

from pathlib import Path
from typing import Annotated

import typer

from cervseg_jax.cli.options import DatasetArgument, Quiet
from cervseg_jax.errors import ConfigError

EXAMPLE = "cervseg-jax stats data/clustered"


def stats(
    dataset: DatasetArgument,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder for the files. Default: the dataset itself.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Summarize a dataset.

    Reports counts, sizes and nuclei per image, with charts and sample images.
    """
    from cervseg_jax.console import Reporter, short_path
    from cervseg_jax.curation.statistics import write_statistics
    from cervseg_jax.files import make_folder
    from cervseg_jax.storage.address import Address, as_path

    reporter = Reporter(quiet=quiet)
    dataset, out = as_path(dataset), None if out is None else as_path(out)
    if out is None and isinstance(dataset, Address) and dataset.is_on_web_server:
        raise ConfigError(f"stats: {dataset} is on a web server, where no file can be written; --out FOLDER is needed")
    target = make_folder(out or dataset)
    summary = write_statistics(dataset.absolute(), target, progress=reporter.progress)
    for split, counts in summary.items():
        kind = "nuclei" if "nuclei" in counts else "regions"
        share = counts["touching_share"]
        touching = "" if share is None else f", {share:.0%} touching another one"
        foreground = f"{counts['foreground_mean']:.1%} nucleus pixels"
        reporter.info(f"{split}: {counts['images']} images, {counts[kind]} {kind}{touching}, {foreground}")
    reporter.info(f"written to {short_path(target)}: overview.html, stats.json and figures")
