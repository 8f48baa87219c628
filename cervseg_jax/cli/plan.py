"""`cervseg-jax plan`."""

from pathlib import Path
from typing import Annotated

import typer

from cervseg_jax.cli.options import Quiet
from cervseg_jax.errors import ConfigError

EXAMPLE = "cervseg-jax plan data/mine -o mine.yaml"


def plan(
    data: Annotated[Path, typer.Argument(help="A dataset, as `cervseg-jax prepare` makes it.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write the recipe here.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Plan a training for a dataset.

    The recipe starts from built-in weights and gives a reason for each value; `train --data` uses it.
    """
    if output is not None and output.exists():
        raise ConfigError(f"--output: {output} exists already")
    from cervseg_jax.console import Reporter
    from cervseg_jax.files import write_text
    from cervseg_jax.training.plan import plan_training

    text, _ = plan_training(data, reporter=Reporter(quiet=quiet))
    if output is None:
        print(text, end="")
        return
    write_text(output, text)
    Reporter(quiet=quiet).info(f"written to {output}; next: cervseg-jax train {output}")
