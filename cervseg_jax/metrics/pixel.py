"""Pixel scores from per-image counts.

Counts are integers per image, made on the device and added in int64 on the host: float32 sums stop being
exact at 2^24 pixels, which is 64 images of 512 x 512.

Rule for empty masks: a score whose denominator is zero is undefined (NaN), left out of the mean and counted.
Reference empty and prediction not, or the other way round: 0.
Reference: Reinke et al. 2024, doi:10.1038/s41592-023-02150-0.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from cervseg_jax.typing import typechecked


class Counts(NamedTuple):
    """Pixels per image; each field has shape [images]."""

    true_positive: np.ndarray
    false_positive: np.ndarray
    false_negative: np.ndarray
    true_negative: np.ndarray


@typechecked
def pixel_counts(
    logits: Float[Array, "b h w 1"], masks: Float[Array, "b h w 1"], *, threshold: float = 0.5
) -> Int[Array, "b 4"]:
    """Counts the pixels of each image that are right and wrong.

    Args:
      logits: raw network outputs.
      masks: targets; at least 0.5 is foreground.
      threshold: probability in (0, 1) from which a pixel is predicted as nucleus.

    Returns:
      Columns true positive, false positive, false negative, true negative (the fields of `Counts`).
    """
    predicted = logits.astype(jnp.float32) >= jax.scipy.special.logit(threshold)
    actual = masks >= 0.5
    cells = (predicted & actual, predicted & ~actual, ~predicted & actual, ~predicted & ~actual)
    return jnp.stack([cell.sum(axis=(1, 2, 3), dtype=jnp.int32) for cell in cells], axis=1)


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Divides; NaN where the denominator is zero."""
    numerator, denominator = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator > 0)


def dice(counts: Counts) -> np.ndarray:
    """Dice coefficient, 2TP / (2TP + FP + FN).

    Example:
      >>> dice(Counts(*np.array([[2, 0], [1, 0], [1, 0], [0, 4]])))
      array([0.66666667,        nan])

    Reference: Dice 1945, Ecology 26(3).
    """
    return ratio(2 * counts.true_positive, 2 * counts.true_positive + counts.false_positive + counts.false_negative)


def iou(counts: Counts) -> np.ndarray:
    """Intersection over union (Jaccard index), TP / (TP + FP + FN)."""
    return ratio(counts.true_positive, counts.true_positive + counts.false_positive + counts.false_negative)


def precision(counts: Counts) -> np.ndarray:
    """Share of the predicted foreground that is right, TP / (TP + FP); 0 where only the truth has nuclei."""
    found_nothing = (counts.true_positive + counts.false_positive == 0) & (counts.false_negative > 0)
    return np.where(found_nothing, 0.0, ratio(counts.true_positive, counts.true_positive + counts.false_positive))


def recall(counts: Counts) -> np.ndarray:
    """Share of the true foreground that was found, TP / (TP + FN); 0 where only the prediction has nuclei."""
    invented = (counts.true_positive + counts.false_negative == 0) & (counts.false_positive > 0)
    return np.where(invented, 0.0, ratio(counts.true_positive, counts.true_positive + counts.false_negative))


def specificity(counts: Counts) -> np.ndarray:
    """Share of the true background that is left alone, TN / (TN + FP). Flatters images with much background."""
    return ratio(counts.true_negative, counts.true_negative + counts.false_positive)


def accuracy(counts: Counts) -> np.ndarray:
    """Share of all pixels that are right. Flatters images with much background."""
    return ratio(counts.true_positive + counts.true_negative, np.sum(counts, axis=0))


METRICS: Mapping[str, Callable[[Counts], np.ndarray]] = {
    "dice": dice,
    "iou": iou,
    "precision": precision,
    "recall": recall,
    "specificity": specificity,
    "accuracy": accuracy,
}
"""Pixel scores by name. `<name>_mean` is the mean over images, `<name>_pooled` the score of the summed counts."""


def summarize(counts: Counts) -> dict[str, float]:
    """Turns per-image counts into `<name>_mean` and `<name>_pooled` for every metric.

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
"""What `summarize` returns, in order."""
