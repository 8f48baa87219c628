"""Pixel scores from per-image counts.

Counts are integers per image, computed on the device and summed as int64 on the host: float32 sums are no longer exact
beyond 2^24 pixels, which is 64 images of 512 x 512.

Empty masks: where the denominator is zero a score is undefined (NaN), left out of the mean, and reported as undefined.
Where only one of truth and prediction is empty, overlap scores are 0.
Reference: Reinke et al. 2024, doi:10.1038/s41592-023-02150-0.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Real

from cervseg_jax.typing import typechecked

Sums = Real[np.ndarray, "*images"]
"""Pixels or nuclei per image, or summed over images."""
Values = Float[np.ndarray, "*images"]
"""A score of each."""


class Counts(NamedTuple):
    """Number of pixels of each kind, per image."""

    true_positive: Real[np.ndarray, "*images"]
    false_positive: Real[np.ndarray, "*images"]
    false_negative: Real[np.ndarray, "*images"]
    true_negative: Real[np.ndarray, "*images"]


@typechecked
def pixel_counts(
    logits: Float[Array, "b h w 1"], masks: Float[Array, "b h w 1"], *, threshold: float = 0.5
) -> Int[Array, "b 4"]:
    """Counts the correct and wrong pixels of each image.

    Args:
      logits: raw network outputs.
      masks: targets; at least 0.5 is foreground.
      threshold: lowest probability, in (0, 1), that is predicted as nucleus.

    Returns:
      Columns true positive, false positive, false negative, true negative (the fields of `Counts`).
    """
    predicted = logits.astype(jnp.float32) >= jax.scipy.special.logit(threshold)
    actual = masks >= 0.5
    cells = (predicted & actual, predicted & ~actual, ~predicted & actual, ~predicted & ~actual)
    return jnp.stack([cell.sum(axis=(1, 2, 3), dtype=jnp.int32) for cell in cells], axis=1)


@typechecked
def ratio(numerator: Sums | np.number, denominator: Sums | np.number) -> Values:
    """Divides in float64; NaN where the denominator is zero."""
    numerator, denominator = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator > 0)


def dice(counts: Counts) -> Values:
    """Dice coefficient, 2TP / (2TP + FP + FN).

    Example:
      >>> dice(Counts(*np.array([[2, 0], [1, 0], [1, 0], [0, 4]])))
      array([0.66666667,        nan])

    Reference: Dice 1945, Ecology 26(3).
    """
    return ratio(2 * counts.true_positive, 2 * counts.true_positive + counts.false_positive + counts.false_negative)


def iou(counts: Counts) -> Values:
    """Intersection over union (Jaccard index), TP / (TP + FP + FN)."""
    return ratio(counts.true_positive, counts.true_positive + counts.false_positive + counts.false_negative)


def precision(counts: Counts) -> Values:
    """Share of the predicted foreground that is correct, TP / (TP + FP); 0 where only the truth has nuclei."""
    is_missed = (counts.true_positive + counts.false_positive == 0) & (counts.false_negative > 0)
    return np.where(is_missed, 0.0, ratio(counts.true_positive, counts.true_positive + counts.false_positive))


def recall(counts: Counts) -> Values:
    """Share of the true foreground that is predicted, TP / (TP + FN); 0 where only the prediction has nuclei."""
    is_invented = (counts.true_positive + counts.false_negative == 0) & (counts.false_positive > 0)
    return np.where(is_invented, 0.0, ratio(counts.true_positive, counts.true_positive + counts.false_negative))


def specificity(counts: Counts) -> Values:
    """Share of the true background that is predicted, TN / (TN + FP); high on images that are mostly background."""
    return ratio(counts.true_negative, counts.true_negative + counts.false_positive)


def accuracy(counts: Counts) -> Values:
    """Share of all pixels that are correct; high on images that are mostly background."""
    return ratio(counts.true_positive + counts.true_negative, np.sum(counts, axis=0))


METRICS: Mapping[str, Callable[[Counts], Values]] = {
    "dice": dice,
    "iou": iou,
    "precision": precision,
    "recall": recall,
    "specificity": specificity,
    "accuracy": accuracy,
}
"""Pixel scores by name; `summarize` adds `_mean` (over images) and `_pooled` (from summed counts) to the names."""


def summarize(counts: Counts) -> dict[str, float]:
    """Returns `<name>_mean` and `<name>_pooled` of every metric.

    Args:
      counts: per-image counts of all images.

    Returns:
      Scores in [0, 1]; NaN where a score is undefined for every image.
    """
    total = Counts(*(np.asarray(field, np.int64).sum(keepdims=True) for field in counts))
    summary = {}
    for name, metric in METRICS.items():
        values = metric(counts)
        defined = values[~np.isnan(values)]
        summary[f"{name}_mean"] = float(defined.mean()) if defined.size else float("nan")
        summary[f"{name}_pooled"] = float(metric(total)[0])
    return summary


SUMMARY_NAMES: tuple[str, ...] = tuple(f"{name}_{how}" for name in METRICS for how in ("mean", "pooled"))
"""Keys of the result of `summarize`, in order."""
