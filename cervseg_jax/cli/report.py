"""`cervseg-jax report`."""

from pathlib import Path
from typing import Annotated

import typer

from cervseg_jax.cli.options import Quiet

EXAMPLE = "cervseg-jax report runs/quickstart"


def report(
    folder: Annotated[Path, typer.Argument(help="A run, finished or not, or an output folder of infer.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The HTML file. Default: report.html in the folder.")
    ] = None,
    layers: Annotated[
        int,
        typer.Option(
            min=0,
            max=100_000,
            help="Number of images that can be opened layer by layer; the others are thumbnails, which keeps the "
            "page small.",
        ),
    ] = 60,
    quiet: Quiet = False,
) -> None:
    """Write an HTML report about a run.

    The page is self-contained. Also reports on output folders of `infer`, and writes a model card and a data card.
    """
    from cervseg_jax.console import Reporter
    from cervseg_jax.report.page import write_report
    from cervseg_jax.runs.bucket import local_copy

    reporter = Reporter(quiet=quiet)
    with local_copy(folder) as run:
        path = write_report(run.folder, out, address=run.address, num_layered=layers, reporter=reporter)
        reporter.info(f"{run.display_path(path)}: {path.stat().st_size / 2**20:.1f} MiB")
