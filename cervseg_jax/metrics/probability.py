"""Scores of probabilities, before they are cut into a mask: soft Dice, Brier score, calibration, best threshold.

As for masks, each image gives counts, here of pixels by probability, and every score is a formula on counts.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cervseg_jax.metrics.pixel import Counts, dice, ratio

NUM_BINS = 100
"""Bins of equal width that probabilities are counted in."""
NUM_CALIBRATION_BINS = 20
THRESHOLDS = range(5, 96)
"""Thresholds that `best_threshold` tries, in hundredths."""


class ProbabilityCounts(NamedTuple):
    """Pixels of each image by bin of their probability; fields of shape [images, NUM_BINS]."""

    nucleus: np.ndarray
    """How many are nucleus."""
    background: np.ndarray
    """How many are not."""
    nucleus_sum: np.ndarray
    """Sum of the probabilities of those that are nucleus."""
    background_sum: np.ndarray
    """Sum of those that are not."""
    squared_error: np.ndarray
    """Shape [images]: sum over the pixels of (probability - truth)²."""


def probability_counts(probs: np.ndarray, mask: np.ndarray) -> ProbabilityCounts:
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


def soft_dice(counts: ProbabilityCounts) -> np.ndarray:
    """Dice of the probabilities themselves, 2 Σpy / (Σp + Σy); NaN where the truth is empty.

    Reference: Milletari et al. 2016, arXiv:1606.04797, with linear instead of squared sums.
    """
    shared, others = counts.nucleus_sum.sum(axis=-1), counts.background_sum.sum(axis=-1)
    actual = counts.nucleus.sum(axis=-1)
    return np.where(actual > 0, ratio(2 * shared, shared + others + actual), np.nan)


def brier(counts: ProbabilityCounts) -> np.ndarray:
    """Mean of (probability - truth)² over the pixels; 0 is best, 0.25 is what a constant one half gives.

    Reference: Brier 1950, Monthly Weather Review 78(1).
    """
    return ratio(counts.squared_error, (counts.nucleus + counts.background).sum(axis=-1))


class Reliability(NamedTuple):
    """How often pixels of a probability are nucleus; fields of shape [..., NUM_CALIBRATION_BINS]."""

    pixels: np.ndarray
    predicted: np.ndarray
    """Mean probability in the bin; NaN where it is empty."""
    observed: np.ndarray
    """Share that is nucleus; NaN where it is empty."""


def reliability(counts: ProbabilityCounts) -> Reliability:
    """Returns the reliability curve of each row of counts.

    Reference: DeGroot and Fienberg 1983, The Statistician 32.
    """

    def coarse(field: np.ndarray) -> np.ndarray:
        return field.reshape(*field.shape[:-1], NUM_CALIBRATION_BINS, -1).sum(axis=-1)

    nucleus, pixels = coarse(counts.nucleus), coarse(counts.nucleus + counts.background)
    return Reliability(
        pixels, ratio(coarse(counts.nucleus_sum + counts.background_sum), pixels), ratio(nucleus, pixels)
    )


def calibration_error(counts: ProbabilityCounts) -> np.ndarray:
    """Expected calibration error: mean distance of the reliability curve from the diagonal, weighted by pixels.

    Reference: Guo et al. 2017, arXiv:1706.04599, equation 3.
    """
    curve = reliability(counts)
    distance = np.abs(np.nan_to_num(curve.predicted - curve.observed))
    return ratio((distance * curve.pixels).sum(axis=-1), curve.pixels.sum(axis=-1))


def best_threshold(counts: ProbabilityCounts) -> float:
    """Returns the threshold of the highest mean Dice over the images; of equal ones that closest to one half."""
    scores = [np.nan_to_num(_mean(dice(counts_at(counts, number))), nan=-1.0) for number in THRESHOLDS]
    good = [number for number, score in zip(THRESHOLDS, scores, strict=True) if score >= max(scores) - 1e-12]
    return min(good, key=lambda number: abs(number - NUM_BINS / 2)) / NUM_BINS


def counts_at(counts: ProbabilityCounts, number: int) -> Counts:
    """Returns the pixel counts for the threshold `number / NUM_BINS`."""
    positive, negative = slice(number, None), slice(None, number)
    return Counts(
        counts.nucleus[..., positive].sum(axis=-1),
        counts.background[..., positive].sum(axis=-1),
        counts.nucleus[..., negative].sum(axis=-1),
        counts.background[..., negative].sum(axis=-1),
    )


def _mean(values: np.ndarray) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")
