"""Confidence intervals of means by resampling."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

NUM_RESAMPLES = 2000


class Interval(NamedTuple):
    """A mean and where it may lie."""

    mean: float
    low: float
    high: float


def bootstrap_mean(
    values: np.ndarray, groups: Sequence[str] | None = None, *, level: float = 0.95, seed: int = 0
) -> Interval:
    """Percentile bootstrap of a mean over images.

    Images of one source are no independent samples: with `groups`, whole groups are drawn.

    Args:
      values: one per image; NaN is left out.
      groups: the source of each image; None: each image is its own.
      level: probability of the interval.
      seed: of the resampling.

    Returns:
      The mean over images and the interval; NaN where no value is defined.

    Reference: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13.
    """
    values = np.asarray(values, np.float64)
    names = np.arange(len(values)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    defined = ~np.isnan(values)
    if not defined.any():
        return Interval(float("nan"), float("nan"), float("nan"))
    _, group = np.unique(names[defined], return_inverse=True)
    sums = np.bincount(group, values[defined])
    counts = np.bincount(group)
    drawn = np.random.default_rng(seed).integers(len(sums), size=(NUM_RESAMPLES, len(sums)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(values[defined].mean()), float(low), float(high))
