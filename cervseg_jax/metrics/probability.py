"""Scores of probabilities, without a threshold: soft Dice, Brier score, calibration; and the choice of a threshold.

Pixels are counted per image in bins of their probability; every score is computed from these counts.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Real

from cervseg_jax.metrics.pixel import Counts, Sums, Values, dice, ratio
from cervseg_jax.typing import typechecked

NUM_BINS = 100
"""Number of bins, of equal width."""
NUM_CALIBRATION_BINS = 20
"""Number of bins of the reliability curve; divides `NUM_BINS`."""
THRESHOLD_BINS = range(5, 96)
"""Thresholds that `best_threshold` tries, in hundredths."""


class ProbabilityCounts(NamedTuple):
    """Pixels of each image, counted in bins by their probability."""

    nucleus: Real[np.ndarray, "*images bins"]
    """Number of nucleus pixels."""
    background: Real[np.ndarray, "*images bins"]
    """Number of background pixels."""
    nucleus_sum: Float[np.ndarray, "*images bins"]
    """Sum of the probabilities of the nucleus pixels."""
    background_sum: Float[np.ndarray, "*images bins"]
    """Sum of the probabilities of the background pixels."""
    squared_error: Sums
    """Sum over the pixels of (probability - truth)²."""


@typechecked
def probability_counts(
    probs: Float[np.ndarray, "h w"], mask: Real[np.ndarray, "h w"] | Bool[np.ndarray, "h w"]
) -> ProbabilityCounts:
    """Counts the pixels of one image.

    Args:
      probs: in [0, 1], shape [h, w].
      mask: 0 or 1, shape [h, w].

    Returns:
      Counts of one image, fields of shape [1, ...].
    """
    probs, inside = np.asarray(probs, np.float64).ravel(), mask.ravel() > 0
    bins = np.minimum((probs * NUM_BINS).astype(np.int64), NUM_BINS - 1) + NUM_BINS * inside
    background, nucleus = np.bincount(bins, minlength=2 * NUM_BINS).reshape(2, 1, -1)
    background_sum, nucleus_sum = np.bincount(bins, probs, minlength=2 * NUM_BINS).reshape(2, 1, -1)
    error = np.square(probs - inside).sum(keepdims=True)
    return ProbabilityCounts(nucleus, background, nucleus_sum, background_sum, error)


def join_probability_counts(parts: Sequence[ProbabilityCounts]) -> ProbabilityCounts:
    """Joins the counts of several images along the first axis."""
    return ProbabilityCounts(*(np.concatenate(field) for field in zip(*parts, strict=True)))


def soft_dice(counts: ProbabilityCounts) -> Values:
    """Dice coefficient of the probabilities, 2 Σpy / (Σp + Σy); NaN where the truth is empty.

    Reference: Milletari et al. 2016, arXiv:1606.04797, with linear instead of squared sums.
    """
    shared, others = counts.nucleus_sum.sum(axis=-1), counts.background_sum.sum(axis=-1)
    actual = counts.nucleus.sum(axis=-1)
    return np.where(actual > 0, ratio(2 * shared, shared + others + actual), np.nan)


def brier(counts: ProbabilityCounts) -> Values:
    """Mean of (probability - truth)² over the pixels: 0 at best, 0.25 for a constant probability of 0.5.

    Reference: Brier 1950, Monthly Weather Review 78(1).
    """
    return ratio(counts.squared_error, (counts.nucleus + counts.background).sum(axis=-1))


class Reliability(NamedTuple):
    """Reliability curve: the share of nucleus among pixels of similar probability."""

    pixels: Real[np.ndarray, "*images bins"]
    predicted: Float[np.ndarray, "*images bins"]
    """Mean probability; NaN in empty bins."""
    observed: Float[np.ndarray, "*images bins"]
    """Share of nucleus pixels; NaN in empty bins."""


def reliability(counts: ProbabilityCounts) -> Reliability:
    """Returns the reliability curve of each image, or of all.

    Reference: DeGroot and Fienberg 1983, The Statistician 32.
    """

    def merge_bins(field: Real[np.ndarray, "*images all"]) -> Real[np.ndarray, "*images bins"]:
        return field.reshape(*field.shape[:-1], NUM_CALIBRATION_BINS, -1).sum(axis=-1)

    nucleus, pixels = merge_bins(counts.nucleus), merge_bins(counts.nucleus + counts.background)
    return Reliability(
        pixels, ratio(merge_bins(counts.nucleus_sum + counts.background_sum), pixels), ratio(nucleus, pixels)
    )


def calibration_error(counts: ProbabilityCounts) -> Values:
    """Expected calibration error: mean absolute difference of predicted and observed, weighted by pixels.

    Reference: Guo et al. 2017, arXiv:1706.04599, equation 3.
    """
    curve = reliability(counts)
    distance = np.abs(np.nan_to_num(curve.predicted - curve.observed))
    return ratio((distance * curve.pixels).sum(axis=-1), curve.pixels.sum(axis=-1))


def best_threshold(counts: ProbabilityCounts) -> float:
    """Returns the threshold with the highest mean Dice over the images; ties go to the one closest to 0.5."""
    scores = [np.nan_to_num(_mean(dice(counts_at(counts, index))), nan=-1.0) for index in THRESHOLD_BINS]
    best = [index for index, score in zip(THRESHOLD_BINS, scores, strict=True) if score >= max(scores) - 1e-12]
    return min(best, key=lambda index: abs(index - NUM_BINS / 2)) / NUM_BINS


def counts_at(counts: ProbabilityCounts, threshold_bin: int) -> Counts:
    """Returns the pixel counts at the threshold `threshold_bin / NUM_BINS`."""
    positive, negative = slice(threshold_bin, None), slice(None, threshold_bin)
    return Counts(
        counts.nucleus[..., positive].sum(axis=-1),
        counts.background[..., positive].sum(axis=-1),
        counts.nucleus[..., negative].sum(axis=-1),
        counts.background[..., negative].sum(axis=-1),
    )


def _mean(values: np.ndarray) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")
