"""Fitting the confidence of nuclei on validation images, see `segmentation.confidence`."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cervseg_jax.extents import Extent, extent_overlaps
from cervseg_jax.label_maps import distance_to_border
from cervseg_jax.metrics.instance import match_above
from cervseg_jax.runtime.distributed import allgather_rows
from cervseg_jax.segmentation.confidence import COVERAGE, FEATURES, Confidence

MATCH_IOU = 0.5
"""A nucleus is right if it matches a true one with a larger IoU, one to one."""
MIN_NUCLEI = 30
"""Fewer nuclei than this on the validation images fit nothing."""
RIDGE = 1.0
"""Penalty of the squared weights of standardized features, in nuclei."""


class Judged(NamedTuple):
    """Nuclei of validation images, and whether they are right."""

    features: np.ndarray
    """float64 [n, features]."""
    is_matched: np.ndarray
    """bool [n]."""
    deviations: np.ndarray
    """Largest distance of the true from the predicted outline, as a share of the diameter; NaN without a match."""
    num_truth: int


def judge(features: np.ndarray, predicted: Sequence[Extent], truth: Sequence[Extent]) -> Judged:
    """Compares the nuclei of one image with the true ones.

    Args:
      features: of the predicted nuclei.
      predicted: predicted nuclei at full extent.
      truth: true nuclei at full extent.
    """
    table = extent_overlaps(truth, predicted)
    chosen = match_above(table, MATCH_IOU)
    is_matched, deviations = np.zeros(len(predicted), bool), np.full(len(predicted), np.nan)
    for row, column in zip(table.rows[chosen], table.columns[chosen], strict=True):
        is_matched[column] = True
        deviations[column] = deviation(predicted[column], truth[row])
    return Judged(features, is_matched, deviations, len(truth))


def deviation(predicted: Extent, truth: Extent) -> float:
    """Returns the margin that a predicted nucleus needs for the true outline, as a share of its diameter.

    Taking all pixels within the margin of the predicted outline away leaves only pixels of the true nucleus; adding
    them gives an area that holds it.
    """
    top, left = min(predicted.top, truth.top) - 1, min(predicted.left, truth.left) - 1
    bottom = max(predicted.window[0].stop, truth.window[0].stop) + 1
    right = max(predicted.window[1].stop, truth.window[1].stop) + 1
    own, its = np.zeros((bottom - top, right - left), bool), np.zeros((bottom - top, right - left), bool)
    own[predicted.moved(-top, -left).window] = predicted.inside
    its[truth.moved(-top, -left).window] = truth.inside
    depth = distance_to_border(own)[own & ~its].max(initial=0)
    height = distance_to_border(~own)[its & ~own].max(initial=0)
    return float(max(depth, height)) / (2 * math.sqrt(predicted.area / math.pi))


def join_judged(parts: Sequence[Judged]) -> Judged:
    """Joins the nuclei of several images."""
    none = Judged(np.zeros((0, len(FEATURES))), np.zeros(0, bool), np.zeros(0), 0)
    features, is_matched, deviations, num_truth = zip(none, *parts, strict=True)
    return Judged(np.concatenate(features), np.concatenate(is_matched), np.concatenate(deviations), sum(num_truth))


def gather_judged(parts: Sequence[Judged], indices: Sequence[int]) -> Judged:
    """Joins the nuclei of the images of all processes. Collective: call it on every process.

    Args:
      parts: nuclei of this process' images.
      indices: index of each of these images among those of all processes.

    Returns:
      All nuclei in the order of the images.
    """
    own = join_judged(parts)
    places = np.repeat(np.asarray(indices, np.int64), [len(part.is_matched) for part in parts]).tolist()
    features, is_matched, deviations = allgather_rows(places, (own.features, own.is_matched, own.deviations))
    counts = allgather_rows(indices, np.array([part.num_truth for part in parts], np.int64))
    return Judged(features, is_matched, deviations, int(counts.sum()))


def fit_confidence(judged: Judged, *, num_images: int) -> Confidence | None:
    """Fits probability and margin.

    Args:
      judged: nuclei of all validation images.
      num_images: number of these images.

    Returns:
      The model; None where nuclei are too few.
    """
    matched = judged.deviations[judged.is_matched]
    if len(judged.is_matched) < MIN_NUCLEI or len(matched) < MIN_NUCLEI:
        return None
    center, scale = judged.features.mean(axis=0), judged.features.std(axis=0)
    scale = np.where(scale > 1e-9, scale, 1.0)
    weights, bias = _logistic((judged.features - center) / scale, judged.is_matched)
    rank = min(len(matched), math.ceil((len(matched) + 1) * COVERAGE))
    confidence = Confidence(
        features=FEATURES,
        center=tuple(center.tolist()),
        scale=tuple(scale.tolist()),
        weights=tuple(weights.tolist()),
        bias=bias,
        margin=float(np.sort(matched)[rank - 1]),
        num_images=num_images,
        num_nuclei=len(judged.is_matched),
        num_matched=len(matched),
        curve=(),
    )
    return confidence.model_copy(update={"curve": _curve(confidence.probabilities(judged.features), judged)})


def _logistic(features: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, float]:
    """Returns weights and bias of the logistic regression with a ridge penalty, by Newton's method."""
    design = np.column_stack([features, np.ones(len(features))])
    penalty = np.append(np.full(features.shape[1], RIDGE), 0.0)
    solution = np.zeros(design.shape[1])
    for _ in range(100):
        probs = 1 / (1 + np.exp(-np.clip(design @ solution, -30, 30)))
        gradient = design.T @ (probs - targets) + penalty * solution
        curvature = design.T @ (design * np.maximum(probs * (1 - probs), 1e-9)[:, None]) + np.diag(penalty)
        step = np.linalg.solve(curvature, gradient)
        solution -= step * min(1.0, 5.0 / max(float(np.abs(step).max()), 1e-12))
        if np.abs(step).max() < 1e-8:
            break
    return solution[:-1], float(solution[-1])


def _curve(probs: np.ndarray, judged: Judged) -> tuple[tuple[float, float, float], ...]:
    """Returns precision and recall of the nuclei from each hundredth of probability on."""
    rows = []
    for threshold in np.arange(100) / 100:
        kept = probs >= threshold
        right = int(judged.is_matched[kept].sum())
        if kept.any():
            rows.append((float(threshold), right / int(kept.sum()), right / max(judged.num_truth, 1)))
    return tuple(rows)
