"""Bootstrap confidence intervals, paired comparisons, and rank correlation."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Real, Shaped
from scipy.stats import norm, spearmanr, t, wilcoxon

from cervseg_jax.typing import typechecked

NUM_RESAMPLES = 2000


class Interval(NamedTuple):
    """A value and its confidence interval."""

    mean: float
    low: float
    high: float


@typechecked
def bootstrap_mean(
    values: Real[np.ndarray, " images"],
    groups: Sequence[Any] | Shaped[np.ndarray, " images"] | None = None,
    *,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Returns the bootstrap interval of a mean over images.

    Images of one source are not independent: with `groups`, whole groups are resampled.

    Args:
      values: one per image; NaN is left out.
      groups: source of each image; None treats each image as its own source.
      level: confidence level.
      seed: seed of the resampling.

    Returns:
      The mean over images and the interval, as `bootstrap_sums`; NaN where no value is defined.

    Reference: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13.
    """
    values = np.asarray(values, np.float64)
    defined = ~np.isnan(values)
    names = np.arange(len(values)) if groups is None else np.asarray(groups)
    rows = np.stack([values[defined], np.ones(defined.sum())], axis=1)
    return bootstrap_sums(_quotient, rows, names[defined], level=level, seed=seed)


@typechecked
def bootstrap_sums(
    statistic: Callable[[Float[np.ndarray, "*resamples k"]], Float[np.ndarray, "*resamples"]],
    rows: Real[np.ndarray, "images k"],
    groups: Sequence[Any] | Shaped[np.ndarray, " images"],
    *,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Returns the bootstrap interval of a function of sums over images, such as a pooled score.

    The ends are percentiles of the resampled values, expanded for few groups (see `_expanded`).

    Args:
      statistic: from sums [..., k] to values [...].
      rows: what each image adds to the sums.
      groups: source of each image; whole sources are resampled.
      level: confidence level.
      seed: seed of the resampling.

    Returns:
      The value of all images, and its interval. NaN without images; the ends are NaN for a single group.
    """
    if not len(rows):
        return Interval(float("nan"), float("nan"), float("nan"))
    _, group = np.unique(np.asarray(groups), return_inverse=True)
    num_groups = int(group.max()) + 1
    sums = np.zeros((num_groups, rows.shape[1]))
    np.add.at(sums, group, rows)
    chosen = np.random.default_rng(seed).integers(num_groups, size=(NUM_RESAMPLES, num_groups))
    flat = (chosen + num_groups * np.arange(NUM_RESAMPLES)[:, None]).ravel()
    times = np.bincount(flat, minlength=NUM_RESAMPLES * num_groups).reshape(NUM_RESAMPLES, num_groups)
    values = statistic(times @ sums)
    is_defined = num_groups > 1 and not np.isnan(values).all()
    low, high = np.nanquantile(values, _expanded(level, num_groups)) if is_defined else (np.nan, np.nan)
    return Interval(float(statistic(rows.sum(axis=0))), float(low), float(high))


def _expanded(level: float, num_groups: int) -> tuple[float, float]:
    """Returns the quantiles of the resampled values at the ends of an interval.

    Plain percentiles give too short intervals for few groups: the variance of resamples is smaller by (n - 1) / n, and
    they correspond to the normal instead of Student's t distribution.

    Reference: Hesterberg 2015, The American Statistician 69(4), section 3.3.1 (expanded percentile interval).
    """
    quantile = t.ppf((1 - level) / 2, num_groups - 1) * math.sqrt(num_groups / (num_groups - 1))
    tail = float(norm.cdf(quantile))
    return tail, 1 - tail


class Comparison(NamedTuple):
    """Paired comparison of a method with a base on the same images."""

    difference: Interval
    p_value: float
    """From Wilcoxon's signed-rank test over groups; NaN if fewer than two groups differ."""
    num_images: int
    num_groups: int
    num_better: int
    """Images on which the method's value is larger."""
    num_worse: int


@typechecked
def compare_paired(
    values: Real[np.ndarray, " images"], base: Real[np.ndarray, " images"], groups: Sequence[str]
) -> Comparison:
    """Compares a method with a base on the same images.

    Args:
      values: one per image; images where either method has NaN are left out.
      base: values of the base.
      groups: source of each image. Whole sources are resampled for the interval; the test uses the mean difference of
        each source.

    Returns:
      The mean of `values - base` over the images, its interval, and the test.

    Reference: Wilcoxon 1945, Biometrics Bulletin 1(6).
    """
    difference = np.asarray(values, np.float64) - np.asarray(base, np.float64)
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


@typechecked
def rank_correlation(first: Float[np.ndarray, " images"], second: Float[np.ndarray, " images"]) -> float:
    """Returns Spearman's rank correlation over the images where both values are defined.

    NaN for fewer than three such images, or if all values are equal.
    """
    defined = ~(np.isnan(first) | np.isnan(second))
    first, second = first[defined], second[defined]
    if len(first) < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return float("nan")
    return float(spearmanr(first, second)[0])  # pyright: ignore[reportArgumentType]
