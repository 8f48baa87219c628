"""How well the confidence of nuclei holds on the images of a split."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from cervseg_jax.evaluation.images import ImageScores
from cervseg_jax.plots import draw_reliability
from cervseg_jax.segmentation.confidence import Confidence
from cervseg_jax.typing import typechecked

NUM_BINS = 10
"""Bins of the reliability curve, of equal width."""


@typechecked
def reliability_of(probs: Float[np.ndarray, " n"], is_right: Bool[np.ndarray, " n"]) -> dict[str, Any]:
    """Returns the reliability curve of nuclei, and their expected calibration error.

    Args:
      probs: probability of each nucleus.
      is_right: whether it is right.

    Returns:
      `predicted`, `observed` and `pixels`, here the number of nuclei, by bin, NaN in empty ones; and `error`.

    Reference: Guo et al. 2017, arXiv:1706.04599, equation 3.
    """
    bins = np.minimum((probs * NUM_BINS).astype(int), NUM_BINS - 1)
    counts = np.bincount(bins, minlength=NUM_BINS)
    with np.errstate(invalid="ignore"):
        predicted = np.bincount(bins, probs, NUM_BINS) / counts
        observed = np.bincount(bins, is_right.astype(np.float64), NUM_BINS) / counts
    distance = np.abs(np.nan_to_num(predicted - observed))
    error = float((distance * counts).sum() / max(len(probs), 1))
    return {
        "predicted": predicted.tolist(),
        "observed": observed.tolist(),
        "pixels": counts.tolist(),
        "error": error,
    }


def summarize_confidence(scores: ImageScores, confidence: Confidence | None) -> dict[str, Any]:
    """Returns the summary's entry `confidence`; nothing where the weights have none, or nuclei are not known.

    It has the reliability curve of nuclei, and how many of the matched ones have their true outline within the margin.
    """
    if confidence is None or scores.judged is None or scores.probabilities is None:
        return {}
    deviations = scores.judged.deviations[scores.judged.is_matched]
    return {
        "confidence": {
            **reliability_of(np.asarray(scores.probabilities, np.float64), scores.judged.is_matched),
            "num_nuclei": len(scores.probabilities),
            "num_matched": len(deviations),
            "margin": confidence.margin,
            "margin_aim": confidence.coverage,
            "margin_coverage": float((deviations <= confidence.margin).mean()) if len(deviations) else None,
        }
    }


def draw_confidence(path: Path, summary: Mapping[str, Any] | None) -> None:
    """Draws the reliability curve of nuclei; removes an earlier picture where there is none."""
    if summary is None:
        path.unlink(missing_ok=True)
    else:
        draw_reliability(path, summary, error=summary["error"], counted="nuclei")
