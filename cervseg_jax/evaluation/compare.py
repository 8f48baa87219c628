"""Paired comparison of runs on the same images: differences, intervals, tests and a verdict."""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from cervseg_jax.console import Reporter
from cervseg_jax.errors import CheckpointError, ConfigError, DataError
from cervseg_jax.evaluation.score import ScoreRequest, score_run
from cervseg_jax.metrics.bootstrap import Comparison, compare_paired
from cervseg_jax.metrics.catalog import shown
from cervseg_jax.runs.folder import member_runs
from cervseg_jax.tables import read_csv

LEVEL = 0.05
"""Significance level of the verdict."""


class Recipe(NamedTuple):
    """The scores of a run, or of the runs of several seeds."""

    name: str
    num_seeds: int
    groups: Mapping[str, str]
    """Source of each image, by the hash of its file."""
    scores: Mapping[str, Mapping[str, Sequence[float]]]
    """A value per seed, by score and image."""


def load_recipe(
    folder: Path, overrides: Sequence[str], *, split: str, data: Path | None, allow_trained: bool, reporter: Reporter
) -> Recipe:
    """Scores a run, or each seed of a recipe.

    Args:
      folder: a run folder, or one with runs `seed_0`, `seed_1` ...
      overrides: `section.key=value` items on the runs' configs.
      split: train, valid or test.
      data: another dataset than the configs'.
      allow_trained: score images that a run was trained on.
      reporter: for progress.

    Returns:
      The scores.

    Raises:
      CervsegError: as `score_run`.
    """
    scores: dict[str, dict[str, list[float]]] = {}
    groups: dict[str, str] = {}
    members = member_runs(folder)
    for run in members:
        request = ScoreRequest(run, split, data, overrides=tuple(overrides), allow_trained=allow_trained)
        results = score_run(request, reporter=reporter).folder
        nuclei = {row["stem"]: row for row in _rows(results / "nuclei_per_image.csv")}
        for row in _rows(results / "per_image.csv"):
            groups[row["image_sha256"]] = row["group"]
            values = row | nuclei.get(row["stem"], {})
            for name in values.keys() & set(shown("comparison")):
                scores.setdefault(name, {}).setdefault(row["image_sha256"], []).append(float(values[name]))
    return Recipe(folder.absolute().name, len(members), groups, scores)


def compare_recipes(recipes: Sequence[Recipe]) -> dict[str, Any]:
    """Compares every recipe with the first one.

    Args:
      recipes: at least two.

    Returns:
      JSON values: the number of images in common, mean and standard deviation over seeds of every recipe, and for
      every further recipe the differences to the first one, positive where the further one is larger.

    Raises:
      ConfigError: for fewer than two recipes.
      DataError: if they have no images in common.
    """
    if len(recipes) < 2:
        raise ConfigError("compare: needs two runs or more")
    images = common_images(recipes)
    groups = [recipes[0].groups[image] for image in images]
    columns = {name: [_column(recipe, name, images) for recipe in recipes] for name in _common_scores(recipes)}
    comparisons = []
    for number, other in enumerate(recipes[1:], start=1):
        results = {
            name: compare_paired(seeds[number].mean(axis=1), seeds[0].mean(axis=1), groups)
            for name, seeds in columns.items()
        }
        comparisons.append(
            {
                "run": other.name,
                "base": recipes[0].name,
                "verdict": verdict(other.name, recipes[0].name, results),
                "scores": {
                    name: result._asdict() | {"difference": result.difference._asdict()}
                    for name, result in results.items()
                },
            }
        )
    return {
        "num_images": len(images),
        "num_sources": len(set(groups)),
        "num_left_out": len(set.union(*(set(recipe.groups) for recipe in recipes)) - set(images)),
        "recipes": [
            {
                "run": recipe.name,
                "num_seeds": recipe.num_seeds,
                "scores": {name: _score_over_seeds(seeds[number]) for name, seeds in columns.items()},
            }
            for number, recipe in enumerate(recipes)
        ],
        "comparisons": comparisons,
    }


def verdict(name: str, base: str, results: Mapping[str, Comparison]) -> str:
    """States whether a run is better than another: by PQ where both have it, else by Dice."""
    score = "pq" if "pq" in results else "dice"
    result = results[score]
    gain = result.difference
    evidence = (
        f"{score} {gain.mean:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}], p = {result.p_value:.2g}, "
        f"{result.num_images} images of {result.num_groups} sources"
    )
    if not result.p_value < LEVEL or gain.low <= 0 <= gain.high:
        return f"no difference between {name} and {base} can be told: {evidence}"
    return f"{name} is {'better' if gain.mean > 0 else 'worse'} than {base}: {evidence}"


def common_images(recipes: Sequence[Recipe]) -> list[str]:
    """Returns the images that every recipe was scored on, in one order.

    Raises:
      DataError: if there are none.
    """
    images = sorted(set.intersection(*(set(recipe.groups) for recipe in recipes)))
    if not images:
        raise DataError("compare: the runs have no scored image in common")
    return images


def headline_columns(recipes: Sequence[Recipe]) -> dict[str, list[np.ndarray]]:
    """Returns Dice, and PQ where every recipe has it: for each recipe the values of the images in common."""
    images, names = common_images(recipes), _common_scores(recipes)
    return {
        name: [_column(recipe, name, images).mean(axis=1) for recipe in recipes]
        for name in shown("headline")
        if name in names
    }


def _common_scores(recipes: Sequence[Recipe]) -> list[str]:
    return [name for name in shown("comparison") if all(name in recipe.scores for recipe in recipes)]


def _column(recipe: Recipe, name: str, images: Sequence[str]) -> np.ndarray:
    """Returns a score [images, seeds]; NaN for images without one."""
    unknown = [float("nan")] * recipe.num_seeds
    return np.array([recipe.scores[name].get(image, unknown) for image in images])


def _score_over_seeds(values: Float[np.ndarray, "images seeds"]) -> dict[str, float]:
    means = [float(np.nanmean(column)) if np.isfinite(column).any() else math.nan for column in values.T]
    mean, deviation = over_seeds(means)
    return {"mean": mean, "sd_over_seeds": deviation}


def over_seeds(values: Sequence[float]) -> tuple[float, float]:
    """Returns mean and sample standard deviation of a score; seeds without a value are left out.

    Example:
      >>> over_seeds([0.5, math.nan, 0.75])[0]
      0.625
      >>> over_seeds([0.5, math.nan])
      (0.5, nan)
    """
    defined = [value for value in values if not math.isnan(value)]
    mean = statistics.mean(defined) if defined else math.nan
    return mean, statistics.stdev(defined) if len(defined) > 1 else math.nan


def _rows(path: Path) -> list[dict[str, str]]:
    return read_csv(path, error=CheckpointError) if path.is_file() else []
