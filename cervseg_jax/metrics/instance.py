"""Scores of single nuclei, from the nuclei of truth and prediction that overlap.

Counts are taken per image; every score is computed from the counts of one image, or from their sum over all images.
Label maps hold 0 for background; other labels need not be contiguous.

Empty images: where neither truth nor prediction has nuclei, a score is undefined (NaN), left out of the mean, and
reported as undefined. Where only one of them has nuclei, overlap scores are 0.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Integer, Real
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

from cervseg_jax.label_maps import Overlaps, centroids, overlaps, touching
from cervseg_jax.metrics.pixel import Sums, Values, ratio
from cervseg_jax.typing import typechecked

IOU_THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
"""F1 scores count pairs whose IoU exceeds one of these."""
CENTROID_RADIUS_PX = 12.0
"""Centroids within this distance count as a detection (Graham et al. 2019)."""


class InstanceCounts(NamedTuple):
    """Counts per image from which the scores are computed."""

    num_truth: Sums
    num_predicted: Sums
    aji_shared: Sums
    aji_union: Sums
    aji_plus_shared: Sums
    aji_plus_union: Sums
    matched: Real[np.ndarray, "*images thresholds"]
    """Pairs whose IoU exceeds each of `IOU_THRESHOLDS`."""
    iou_sum: Sums
    """IoU summed over the pairs above 0.5."""
    detected: Sums
    """Pairs of centroids within `CENTROID_RADIUS_PX`."""
    num_split: Sums
    """True nuclei that cover more than half of each of two or more predicted ones."""
    num_merged: Sums
    """True nuclei of which one predicted nucleus covers more than half, and as much of another true one."""


@typechecked
def count_instances(
    truth: Integer[np.ndarray, "h w"], prediction: Integer[np.ndarray, "h w"], *, touching_only: bool = False
) -> InstanceCounts:
    """Compares two label maps.

    Args:
      truth: integer labels [h, w].
      prediction: integer labels [h, w].
      touching_only: count only true nuclei that touch another one, and predicted ones that overlap most with such a
        nucleus.

    Returns:
      The counts of one image, fields of shape [1].
    """
    table = overlaps(truth, prediction)
    true_centers, predicted_centers = centroids(truth), centroids(prediction)
    return counts_of(table, true_centers, predicted_centers, keep=touching(truth) if touching_only else None)


@typechecked
def counts_of(
    table: Overlaps,
    true_centers: Real[np.ndarray, "n 2"],
    predicted_centers: Real[np.ndarray, "m 2"],
    *,
    keep: Bool[np.ndarray, " n"] | None = None,
) -> InstanceCounts:
    """Counts from the common pixels of nuclei, of which those of one side may overlap.

    Args:
      table: common pixels.
      true_centers: row and column of each true nucleus' centroid.
      predicted_centers: likewise.
      keep: true nuclei that are counted, with the predicted ones that overlap most with one of them; None: all.

    Returns:
      The counts of one image, fields of shape [1].
    """
    if keep is not None:
        keep_columns = _belongs_to(table, keep)
        table = _restricted(table, keep, keep_columns)
        true_centers, predicted_centers = true_centers[keep], predicted_centers[keep_columns]
    return _counts(table, _num_point_pairs(true_centers, predicted_centers))


def _counts(table: Overlaps, num_detected: int) -> InstanceCounts:
    iou = table.iou
    num_truth, num_predicted = len(table.truth_areas), len(table.prediction_areas)
    aji_shared, aji_union = _aji(table)
    plus_shared, plus_union = _aji_plus(table)
    pairs = [match_above(table, threshold) for threshold in IOU_THRESHOLDS]
    inside = table.shared > 0.5 * table.prediction_areas[table.columns]
    parts = np.bincount(table.rows[inside], minlength=num_truth)
    covered = table.shared > 0.5 * table.truth_areas[table.rows]
    num_covered = np.bincount(table.columns[covered], minlength=num_predicted)
    values = (
        num_truth,
        num_predicted,
        aji_shared,
        aji_union,
        plus_shared,
        plus_union,
        [len(chosen) for chosen in pairs],
        iou[pairs[0]].sum(),
        num_detected,
        (parts >= 2).sum(),
        num_covered[num_covered >= 2].sum(),
    )
    return InstanceCounts(*(np.array([value]) for value in values))


def match_above(table: Overlaps, threshold: float) -> np.ndarray:
    """Returns the indices of the pairs whose IoU exceeds the threshold, each nucleus at most once.

    In label maps a nucleus has at most one partner with an IoU above 0.5 (Kirillov et al. 2019, section 4.1). Whole
    nuclei may have more: as many pairs as possible are chosen, then those of the largest IoU.
    """
    above = np.flatnonzero(table.iou > threshold)
    rows, columns = table.rows[above], table.columns[above]
    if len(np.unique(rows)) == len(rows) and len(np.unique(columns)) == len(columns):
        return above
    # The constant makes one more pair outweigh any IoU.
    gain = 1e3 + table.iou[above]
    return above[_assignment(rows, columns, gain, (len(table.truth_areas), len(table.prediction_areas)))]


def _aji(table: Overlaps) -> tuple[int, int]:
    """Numerator and denominator of the AJI: each true nucleus is paired with the predicted one of largest IoU."""
    iou = table.iou
    # Sort by nucleus, then by descending IoU, and take the first of each nucleus.
    order = np.lexsort((-iou, table.rows))
    _, first = np.unique(table.rows[order], return_index=True)
    best = order[first]
    shared = table.shared[best]
    union = table.truth_areas[table.rows[best]] + table.prediction_areas[table.columns[best]] - shared
    missed = np.delete(table.truth_areas, table.rows[best])
    unused = np.delete(table.prediction_areas, np.unique(table.columns[best]))
    return int(shared.sum()), int(union.sum() + missed.sum() + unused.sum())


def _aji_plus(table: Overlaps) -> tuple[int, int]:
    """Numerator and denominator of AJI+: a one-to-one assignment with the largest total IoU."""
    chosen = _assignment(table.rows, table.columns, table.iou, (len(table.truth_areas), len(table.prediction_areas)))
    shared = int(table.shared[chosen].sum())
    return shared, int(table.truth_areas.sum() + table.prediction_areas.sum() - shared)


def _assignment(rows: np.ndarray, columns: np.ndarray, gain: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Solves a sparse assignment problem: pairs of largest total gain, each row and column at most once.

    Returns:
      Indices of the chosen pairs.
    """
    num_rows, num_columns = shape
    if not len(rows):
        return np.zeros(0, int)
    graph = coo_array(
        (np.ones(len(rows)), (rows, num_rows + columns)), shape=(num_rows + num_columns, num_rows + num_columns)
    )
    # Solving each connected component by itself keeps the dense tables small.
    _, group = connected_components(graph, directed=False)
    order = np.argsort(group[rows], kind="stable")
    borders = np.flatnonzero(np.diff(group[rows][order])) + 1
    chosen = []
    for members in np.split(order, borders):
        own_rows, row = np.unique(rows[members], return_inverse=True)
        own_columns, column = np.unique(columns[members], return_inverse=True)
        dense = np.zeros((len(own_rows), len(own_columns)))
        dense[row, column] = gain[members]
        position = np.full(dense.shape, -1)
        position[row, column] = members
        taken = position[linear_sum_assignment(dense, maximize=True)]
        chosen.append(taken[taken >= 0])
    return np.concatenate(chosen)


def _num_point_pairs(true_points: np.ndarray, predicted_points: np.ndarray) -> int:
    """Counts one-to-one pairs of points within the radius: as many pairs as possible, then as close as possible."""
    if not len(true_points) or not len(predicted_points):
        return 0
    trees = KDTree(true_points), KDTree(predicted_points)
    near = trees[0].sparse_distance_matrix(trees[1], CENTROID_RADIUS_PX, output_type="coo_matrix")
    # The constant makes one more pair outweigh any distances.
    gain = 1e6 - near.data
    return len(_assignment(near.row, near.col, gain, near.shape))


def _belongs_to(table: Overlaps, keep_rows: np.ndarray) -> np.ndarray:
    """Returns which predicted nuclei overlap most with a true nucleus that is kept, bool [m]."""
    keep = np.zeros(len(table.prediction_areas), bool)
    order = np.lexsort((-table.shared, table.columns))
    _, first = np.unique(table.columns[order], return_index=True)
    most = order[first]
    keep[table.columns[most]] = keep_rows[table.rows[most]]
    return keep


def _restricted(table: Overlaps, keep_rows: np.ndarray, keep_columns: np.ndarray) -> Overlaps:
    keep = keep_rows[table.rows] & keep_columns[table.columns]
    new_rows, new_columns = np.cumsum(keep_rows) - 1, np.cumsum(keep_columns) - 1
    return Overlaps(
        table.truth_areas[keep_rows],
        table.prediction_areas[keep_columns],
        new_rows[table.rows[keep]],
        new_columns[table.columns[keep]],
        table.shared[keep],
    )


def aji(counts: InstanceCounts) -> Values:
    """Aggregated Jaccard index; several true nuclei may use one predicted nucleus (Kumar et al. 2017, algorithm 1)."""
    return ratio(counts.aji_shared, counts.aji_union)


def aji_plus(counts: InstanceCounts) -> Values:
    """Aggregated Jaccard index with a one-to-one assignment (Graham et al. 2019, arXiv:1812.06499)."""
    return ratio(counts.aji_plus_shared, counts.aji_plus_union)


def recognition_quality(counts: InstanceCounts, threshold: float = 0.5) -> Values:
    """F1 of nuclei that match with an IoU above the threshold, 2TP / (n + m) (Kirillov et al. 2019, equation 2)."""
    matched = counts.matched[..., IOU_THRESHOLDS.index(threshold)]
    return ratio(2 * matched, counts.num_truth + counts.num_predicted)


def segmentation_quality(counts: InstanceCounts) -> Values:
    """Segmentation quality: mean IoU of the matches above 0.5; NaN without matches."""
    return ratio(counts.iou_sum, counts.matched[..., 0])


def panoptic_quality(counts: InstanceCounts) -> Values:
    """Panoptic quality, SQ times RQ: summed IoU of the matches over (n + m) / 2; 0 without matches."""
    return ratio(2 * counts.iou_sum, counts.num_truth + counts.num_predicted)


def detection_f1(counts: InstanceCounts) -> Values:
    """F1 of detections: centroids within 12 pixels of each other, paired one to one."""
    return ratio(2 * counts.detected, counts.num_truth + counts.num_predicted)


def split_rate(counts: InstanceCounts) -> Values:
    """Share of the true nuclei that cover more than half of each of two or more predicted ones."""
    return ratio(counts.num_split, counts.num_truth)


def merge_rate(counts: InstanceCounts) -> Values:
    """Share of the true nuclei that one predicted nucleus covers by more than half, together with another one."""
    return ratio(counts.num_merged, counts.num_truth)


def count_error(counts: InstanceCounts) -> Values:
    """Number of predicted minus number of true nuclei."""
    return np.asarray(counts.num_predicted, np.float64) - counts.num_truth


def _f1_at(threshold: float) -> Callable[[InstanceCounts], Values]:
    return lambda counts: recognition_quality(counts, threshold)


INSTANCE_METRICS: Mapping[str, Callable[[InstanceCounts], Values]] = {
    "aji": aji,
    "aji_plus": aji_plus,
    "pq": panoptic_quality,
    "sq": segmentation_quality,
    "rq": recognition_quality,
    **{f"f1_{round(100 * threshold)}": _f1_at(threshold) for threshold in IOU_THRESHOLDS},
    "detection_f1": detection_f1,
    "split_rate": split_rate,
    "merge_rate": merge_rate,
    "count_error": count_error,
}
"""Scores of nuclei by name; `f1_50` equals `rq`."""


def join_counts(parts: Sequence[InstanceCounts]) -> InstanceCounts:
    """Concatenates the counts of images."""
    return InstanceCounts(*(np.concatenate(fields) for fields in zip(*parts, strict=True)))


def pooled(counts: InstanceCounts) -> InstanceCounts:
    """Sums counts over images; fields of shape [1]."""
    return InstanceCounts(*(np.asarray(field).sum(axis=0, keepdims=True) for field in counts))
