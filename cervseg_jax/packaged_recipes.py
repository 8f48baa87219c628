"""The recipes that ship with the package, found by name.

`cervseg_jax/recipes` is a link to `configs/` of the source tree; wheels contain a copy of its YAML files.
"""

import os
import re
from pathlib import Path
from typing import NamedTuple

from cervseg_jax.components import suggestion
from cervseg_jax.errors import ConfigError

RECIPES = Path(__file__).parent / "recipes"

_ROOT_LINE = re.compile(r"^(\s*root:\s*)(\S+)", re.MULTILINE)
_MODEL_LINE = re.compile(r"^model:\n  name: (\w+)", re.MULTILINE)


class RecipeFile(NamedTuple):
    """A config file and the folder that its relative paths start from."""

    path: Path
    base: Path


def recipe_names() -> list[str]:
    """Returns the names of the packaged recipes, sorted."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def recipe_summary(name: str) -> str:
    """Returns the one-line description of a packaged recipe: the first line of its head comment."""
    with (RECIPES / f"{name}.yaml").open(encoding="utf-8") as file:
        return file.readline().lstrip("# ").strip()


def find_recipe(config: Path | str) -> RecipeFile:
    """Locates a config: a file, or a packaged recipe by name. A file wins.

    Relative paths in a packaged recipe are resolved as if it lay in `configs/` of the current folder, so that
    `../data/quickstart` is `data/quickstart` there.

    Args:
      config: a path, or a recipe's name.

    Returns:
      The file, which may be missing or unreadable if it was given as a path.

    Raises:
      ConfigError: if `config` is neither a file nor the name of a recipe.

    Example:
      >>> find_recipe("quickstart").path.name
      'quickstart.yaml'
    """
    path = Path(config)
    if path.is_file():
        return RecipeFile(path, path.absolute().parent)
    if path.name == str(config) and path.suffix in ("", ".yaml") and path.stem in recipe_names():
        return RecipeFile(RECIPES / f"{path.stem}.yaml", Path.cwd() / "configs")
    if not path.exists():
        raise ConfigError(f"{path}: no such config file or recipe; {suggestion(path.stem, recipe_names())}")
    return RecipeFile(path, path.absolute().parent)


def copied_recipe(name: str, target: Path) -> str:
    """Returns the text of a packaged recipe for a copy at `target`.

    Args:
      name: a packaged recipe.
      target: where the copy will lie; `data.root` is rewritten to name the same folder from there.

    Returns:
      YAML, with comments.

    Raises:
      ConfigError: if there is no such recipe.
    """
    if name not in recipe_names():
        raise ConfigError(f"recipes: unknown name {name!r}; {suggestion(name, recipe_names())}")
    text = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8")

    def moved(match: re.Match[str]) -> str:
        root = (Path.cwd() / "configs" / match[2]).resolve()
        return match[1] + Path(os.path.relpath(root, target.absolute().parent)).as_posix()

    return _ROOT_LINE.sub(moved, text, count=1).replace(f"cervseg-jax train {name}\n", f"cervseg-jax train {target}\n")


def model_names() -> list[str]:
    """Returns the names of the models that recipes use, without importing any model."""
    names = set()
    for name in recipe_names():
        match = _MODEL_LINE.search((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))
        if match is not None:
            names.add(match[1])
    return sorted(names)
