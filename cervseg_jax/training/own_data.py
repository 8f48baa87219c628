"""From a folder of annotated images to a recipe, for `cervseg-jax train --data`."""

from pathlib import Path
from typing import NamedTuple

from cervseg_jax.console import Reporter, short_path
from cervseg_jax.curation.collect import collect
from cervseg_jax.curation.dataset import make_dataset
from cervseg_jax.curation.recipe import Recipe
from cervseg_jax.data.checks import ReadFiles
from cervseg_jax.errors import ConfigError
from cervseg_jax.files import make_folder, write_text
from cervseg_jax.storage.address import Address, as_path
from cervseg_jax.training.plan import FEW_SOURCES, plan_training

VALID_SHARE = 0.25
"""Of the sources; none are kept for a test, which a user of few images cannot spare. With fewer images than
`FEW_SOURCES`, none are kept for validation either."""


class PlannedRecipe(NamedTuple):
    """A recipe for a folder of images."""

    path: Path
    known: ReadFiles | None
    """The files that were read for it; None if it was planned before."""


def planned_recipe(folder: Path, run_dir: Path, *, reporter: Reporter) -> PlannedRecipe:
    """Prepares a folder and plans its training; an earlier call's dataset and plan are used again.

    Args:
      folder: a dataset with `train` and `valid`, or annotated images in any form that `prepare` reads.
      run_dir: the run folder; dataset and recipe are written beside it, as `NAME-dataset` and `NAME.yaml`.
      reporter: for messages.

    Returns:
      The recipe, and what was learned from the files.

    Raises:
      ConfigError: if there is no such folder, it has no training images, or `run_dir` is in a bucket.
      DataError: if files are bad.
    """
    folder = as_path(folder)
    if not folder.is_dir():
        raise ConfigError(f"--data: no such folder: {folder}")
    if isinstance(as_path(run_dir), Address):
        raise ConfigError("--data: needs a --run-dir on this machine; plan a config for runs in a bucket")
    recipe = run_dir.with_name(f"{run_dir.name}.yaml")
    if recipe.exists():
        reporter.info(f"recipe: {short_path(recipe)}, as planned before")
        return PlannedRecipe(recipe, None)
    dataset = folder
    if not (folder / "train" / "images").is_dir():
        if (folder / "test" / "images").is_dir():
            raise ConfigError(f"--data: {folder} is a dataset whose images are all for testing")
        dataset = run_dir.with_name(f"{run_dir.name}-dataset")
        valid = VALID_SHARE if len(collect(folder).images) >= FEW_SOURCES else 0.0
        make_dataset(folder, dataset, Recipe(valid=valid, test=0.0), reporter=reporter)
    text, known = plan_training(dataset, reporter=reporter)
    make_folder(recipe.parent)
    write_text(recipe, text)
    reporter.info(f"recipe: {short_path(recipe)}; it says why each value was chosen")
    return PlannedRecipe(recipe, known)
