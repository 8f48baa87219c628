"""Scores of masks and probabilities over a split of a dataset."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8

from cervseg_jax.metrics.bootstrap import bootstrap_mean, bootstrap_sums
from cervseg_jax.metrics.pixel import METRICS, Counts
from cervseg_jax.metrics.probability import (
    NUM_BINS,
    ProbabilityCounts,
    best_threshold,
    brier,
    calibration_error,
    counts_at,
    join_probability_counts,
    probability_counts,
    reliability,
    soft_dice,
)
from cervseg_jax.typing import typechecked


class PixelScores(NamedTuple):
    """Pixel scores of the images of a split, one row each."""

    counts: Counts
    """Confusion counts of the masks."""
    probabilities: ProbabilityCounts


@typechecked
def score_pixels(
    probs: Float[np.ndarray, "h w"], truth: UInt8[np.ndarray, "h w"], *, predicted: Bool[np.ndarray, "h w"]
) -> PixelScores:
    """Compares the prediction for one image with its true mask.

    Args:
      probs: mask probabilities in [0, 1].
      truth: 0 or 1.
      predicted: the predicted mask.

    Returns:
      Scores of one image, fields of shape [1, ...].
    """
    actual = truth > 0
    cells = (predicted & actual, predicted & ~actual, ~predicted & actual, ~predicted & ~actual)
    counts = Counts(*(np.array([np.count_nonzero(cell)]) for cell in cells))
    return PixelScores(counts, probability_counts(probs, truth))


def join_pixel_scores(parts: Sequence[PixelScores]) -> PixelScores:
    """Concatenates the scores of several images."""
    counts, probabilities = zip(*parts, strict=True)
    return PixelScores(Counts(*map(np.concatenate, zip(*counts, strict=True))), join_probability_counts(probabilities))


def columns_of(scores: PixelScores) -> dict[str, np.ndarray]:
    """Returns every score per image by name."""
    columns = {name: metric(scores.counts) for name, metric in METRICS.items()}
    return columns | {"soft_dice": soft_dice(scores.probabilities), "brier": brier(scores.probabilities)}


def summarize_pixels(scores: PixelScores, groups: Sequence[str]) -> dict[str, Any]:
    """Summarizes scores.

    Args:
      scores: of all images.
      groups: source of each image; the bootstrap resamples whole sources.

    Returns:
      `<name>_mean` over images and `<name>_pooled` of all images as one, their 95 % intervals by the same names under
      `intervals`, how many images have no value under `undefined`, and the reliability curve under `calibration`.
    """
    summary: dict[str, Any] = {}
    intervals: dict[str, list[float]] = {}
    undefined: dict[str, int] = {}
    pooled = _pooled_metrics()
    for name, values in columns_of(scores).items():
        mean = bootstrap_mean(values, groups)
        whole = bootstrap_sums(pooled[name], _sum_rows(scores), groups)
        summary |= {f"{name}_mean": mean.mean, f"{name}_pooled": whole.mean}
        intervals |= {f"{name}_mean": [mean.low, mean.high], f"{name}_pooled": [whole.low, whole.high]}
        undefined[name] = int(np.isnan(values).sum())
    error = bootstrap_sums(lambda sums: calibration_error(_unpacked(sums)[1]), _sum_rows(scores), groups)
    summary["calibration_error"] = error.mean
    intervals["calibration_error"] = [error.low, error.high]
    curve = reliability(_unpacked(_sum_rows(scores).sum(axis=0))[1])
    return summary | {
        "intervals": intervals,
        "undefined": {name: count for name, count in undefined.items() if count},
        "calibration": {name: field.tolist() for name, field in curve._asdict().items()},
    }


def tuned_threshold(validation: PixelScores, scores: PixelScores, groups: Sequence[str]) -> dict[str, float]:
    """Chooses the threshold of the highest mean Dice on validation images, and applies it to other images.

    Args:
      validation: scores of validation images.
      scores: scores of the other images.
      groups: source of each of the other images.

    Returns:
      The threshold, and the mean Dice with its interval.
    """
    threshold = best_threshold(validation.probabilities)
    cut = counts_at(scores.probabilities, round(threshold * NUM_BINS))
    interval = bootstrap_mean(METRICS["dice"](cut), groups)
    return {"threshold": threshold, "dice_mean": interval.mean, "low": interval.low, "high": interval.high}


def _sum_rows(scores: PixelScores) -> np.ndarray:
    """Returns all counts and sums of each image, float64 [images, k]."""
    fields = [*scores.counts, *scores.probabilities]
    return np.concatenate([np.asarray(field, np.float64).reshape(len(field), -1) for field in fields], axis=1)


def _unpacked(sums: np.ndarray) -> tuple[Counts, ProbabilityCounts]:
    """Turns sums of `_sum_rows` back into counts."""
    counts = Counts(*np.moveaxis(sums[..., :4], -1, 0))
    nucleus, background, nucleus_sum, background_sum = np.split(sums[..., 4:-1], 4, axis=-1)
    return counts, ProbabilityCounts(nucleus, background, nucleus_sum, background_sum, sums[..., -1])


def _pooled_metrics() -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    def of_counts(metric: Callable[[Counts], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
        return lambda sums: metric(_unpacked(sums)[0])

    def of_probabilities(metric: Callable[[ProbabilityCounts], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
        return lambda sums: metric(_unpacked(sums)[1])

    table = {name: of_counts(metric) for name, metric in METRICS.items()}
    return table | {"soft_dice": of_probabilities(soft_dice), "brier": of_probabilities(brier)}
