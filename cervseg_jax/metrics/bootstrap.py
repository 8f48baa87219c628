"""Confidence intervals by resampling, tests of paired differences, and correlation."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import norm, spearmanr, t, wilcoxon

NUM_RESAMPLES = 2000


class Interval(NamedTuple):
    """A value and where it may lie."""

    mean: float
    low: float
    high: float


def bootstrap_mean(
    values: np.ndarray, groups: Sequence[str] | None = None, *, level: float = 0.95, seed: int = 0
) -> Interval:
    """Bootstrap interval of a mean over images.

    Images of one source are no independent samples: with `groups`, whole groups are drawn.

    Args:
      values: one per image; NaN is left out.
      groups: the source of each image; None: each image is its own.
      level: probability of the interval.
      seed: of the resampling.

    Returns:
      The mean over images and the interval, as `bootstrap_sums`; NaN where no value is defined.

    Reference: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13.
    """
    values = np.asarray(values, np.float64)
    defined = ~np.isnan(values)
    names = np.arange(len(values)) if groups is None else np.asarray(groups)
    rows = np.stack([values[defined], np.ones(defined.sum())], axis=1)
    return bootstrap_sums(_quotient, rows, names[defined], level=level, seed=seed)


def bootstrap_sums(
    statistic: Callable[[np.ndarray], np.ndarray],
    rows: np.ndarray,
    groups: Sequence[str] | np.ndarray,
    *,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Bootstrap interval of a function of sums over images, such as a pooled score.

    Ends are percentiles of the resampled values, further out for few groups (see `_expanded`).

    Args:
      statistic: from sums [..., k] to values [...].
      rows: what each image adds to the sums, [images, k].
      groups: the source of each image; whole sources are drawn.
      level: probability of the interval.
      seed: of the resampling.

    Returns:
      The value of all images and the interval; without images all are NaN, and for one group its ends.
    """
    if not len(rows):
        return Interval(float("nan"), float("nan"), float("nan"))
    _, group = np.unique(np.asarray(groups), return_inverse=True)
    num_groups = int(group.max()) + 1
    sums = np.zeros((num_groups, rows.shape[1]))
    np.add.at(sums, group, rows)
    drawn = np.random.default_rng(seed).integers(num_groups, size=(NUM_RESAMPLES, num_groups))
    flat = (drawn + num_groups * np.arange(NUM_RESAMPLES)[:, None]).ravel()
    times = np.bincount(flat, minlength=NUM_RESAMPLES * num_groups).reshape(NUM_RESAMPLES, num_groups)
    values = statistic(times @ sums)
    low, high = np.nanquantile(values, _expanded(level, num_groups)) if num_groups > 1 else (np.nan, np.nan)
    return Interval(float(statistic(rows.sum(axis=0))), float(low), float(high))


def _expanded(level: float, num_groups: int) -> tuple[float, float]:
    """Returns the quantiles that are taken for the ends of an interval.

    The plain ones make intervals of few groups too short: resamples spread by (n - 1) / n less than samples do, and
    the normal distribution stands where Student's t belongs.

    Reference: Hesterberg 2015, The American Statistician 69(4), section 3.3.1 (expanded percentile interval).
    """
    quantile = t.ppf((1 - level) / 2, num_groups - 1) * math.sqrt(num_groups / (num_groups - 1))
    tail = float(norm.cdf(quantile))
    return tail, 1 - tail


class Comparison(NamedTuple):
    """How much larger the values of one method are than those of another on the same images."""

    difference: Interval
    p_value: float
    """Of Wilcoxon's signed-rank test over groups; NaN for fewer than two groups that differ."""
    num_images: int
    num_groups: int
    num_better: int
    """Images where the first is larger."""
    num_worse: int


def compare_paired(one: np.ndarray, other: np.ndarray, groups: Sequence[str]) -> Comparison:
    """Compares two methods on the same images.

    Args:
      one: a value per image; images where either is NaN are left out.
      other: likewise.
      groups: the source of each image. Whole sources are drawn for the interval, and each counts once in the test, by
        the mean difference of its images.

    Returns:
      The mean of `one - other` over the images, its interval, and the test.

    Reference: Wilcoxon 1945, Biometrics Bulletin 1(6).
    """
    difference = np.asarray(one, np.float64) - np.asarray(other, np.float64)
    defined = ~np.isnan(difference)
    names, group = np.unique(np.asarray(groups)[defined], return_inverse=True)
    kept = difference[defined]
    means = np.bincount(group, kept, minlength=len(names)) / np.maximum(np.bincount(group, minlength=len(names)), 1)
    differing = means[means != 0]
    p_value = float(wilcoxon(differing).pvalue) if len(differing) >= 2 else float("nan")  # pyright: ignore[reportAttributeAccessIssue]
    return Comparison(
        bootstrap_mean(difference, groups),
        p_value,
        int(defined.sum()),
        len(names),
        int((kept > 0).sum()),
        int((kept < 0).sum()),
    )


def _quotient(sums: np.ndarray) -> np.ndarray:
    return sums[..., 0] / sums[..., 1]


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's rank correlation over the places where both are defined; NaN for fewer than three or equal values."""
    defined = ~(np.isnan(one) | np.isnan(other))
    one, other = one[defined], other[defined]
    if len(one) < 3 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return float("nan")
    return float(spearmanr(one, other)[0])  # pyright: ignore[reportArgumentType]
