"""`cervseg-jax recipes`."""

from pathlib import Path
from typing import Annotated

import typer

from cervseg_jax.cli.options import complete_recipe
from cervseg_jax.errors import ConfigError
from cervseg_jax.packaged_recipes import copied_recipe, recipe_names, recipe_summary

EXAMPLE = "cervseg-jax recipes nuclei_small -o mine.yaml"


def recipes(
    name: Annotated[
        str | None,
        typer.Argument(
            help="A recipe to print or copy. Without it, all recipes are listed.",
            autocompletion=complete_recipe,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Copy the recipe to this new file.")
    ] = None,
) -> None:
    """List the packaged recipes, or copy one.

    `cervseg-jax train NAME` trains a recipe; -o copies it to a file that can be edited.
    """
    if name is None:
        if out is not None:
            raise ConfigError("--out: needs the name of a recipe; `cervseg-jax recipes` lists them")
        width = max(map(len, recipe_names()))
        for recipe in recipe_names():
            print(f"{recipe:<{width}}  {recipe_summary(recipe)}")
        return
    text = copied_recipe(name, out or Path(f"{name}.yaml"))
    if out is None:
        print(text, end="")
        return
    if out.exists():
        raise ConfigError(f"--out: {out} already exists; choose another name")
    from cervseg_jax.files import write_text

    try:
        write_text(out, text)
    except OSError as error:
        raise ConfigError(f"--out: {out} cannot be written: {error.strerror}") from None
    print(f"written to {out}; next: cervseg-jax train {out}")
