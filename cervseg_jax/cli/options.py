"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

Quiet = Annotated[bool, typer.Option("--quiet", help="Print warnings and errors only.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a config value (repeatable).")
]
Tiled = Annotated[
    bool | None,
    typer.Option("--tiled/--whole", help="In overlapping tiles, or resized; default: as configured."),
]
Ensemble = Annotated[
    list[Path] | None, typer.Option("--with", metavar="RUN", help="Average with this run (repeatable).")
]
RunArgument = Annotated[Path, typer.Argument(help="A run folder, such as runs/quickstart.")]
