"""Scores of single nuclei: which true nucleus is which predicted one, then formulas from counts.

As for pixels, each image gives counts, and every score is a formula on counts, of one image or of the sum of all.
Label maps hold 0 for background; other labels need not be contiguous.

Rule for empty images: where truth and prediction are both empty a score is undefined (NaN), left out of the mean and
counted; where one is empty, overlap scores are 0.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

from cervseg_jax.label_maps import Overlaps, centroids, overlaps, touching
from cervseg_jax.metrics.pixel import ratio

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
"""IoU that a match must exceed, for the F1 scores."""
CENTROID_RADIUS_PX = 12.0
"""Distance up to which centroids are one detection (Graham et al. 2019)."""


class InstanceCounts(NamedTuple):
    """What one image adds to the scores; each field has shape [images], `matched` [images, thresholds]."""

    num_truth: np.ndarray
    num_predicted: np.ndarray
    aji_shared: np.ndarray
    aji_union: np.ndarray
    aji_plus_shared: np.ndarray
    aji_plus_union: np.ndarray
    matched: np.ndarray
    """Pairs whose IoU exceeds each of `THRESHOLDS`."""
    iou_sum: np.ndarray
    """IoU summed over pairs above 0.5."""
    detected: np.ndarray
    """Pairs of centroids within the radius."""
    num_split: np.ndarray
    """True nuclei that hold more than half of each of several predicted ones."""
    num_merged: np.ndarray
    """True nuclei that share with another the predicted one that holds more than half of each."""


def count_instances(truth: np.ndarray, prediction: np.ndarray, *, touching_only: bool = False) -> InstanceCounts:
    """Compares two label maps.

    Args:
      truth: integer labels [h, w].
      prediction: integer labels [h, w].
      touching_only: count only true nuclei that touch another one, and predicted ones that share most pixels with
        such a nucleus.

    Returns:
      The counts of one image, fields of shape [1].
    """
    table = overlaps(truth, prediction)
    true_centers, predicted_centers = centroids(truth), centroids(prediction)
    if touching_only:
        keep_rows = touching(truth)
        keep_columns = _belongs_to(table, keep_rows)
        table = _restricted(table, keep_rows, keep_columns)
        true_centers, predicted_centers = true_centers[keep_rows], predicted_centers[keep_columns]
    return _counts(table, _pairs_of_points(true_centers, predicted_centers))


def _counts(table: Overlaps, num_detected: int) -> InstanceCounts:
    iou = table.iou
    num_truth, num_predicted = len(table.truth_areas), len(table.prediction_areas)
    aji_shared, aji_union = _aji(table)
    plus_shared, plus_union = _aji_plus(table)
    # Above one half a nucleus has one partner at most (Kirillov et al. 2019, section 4.1).
    matched = [int((iou > threshold).sum()) for threshold in THRESHOLDS]
    held = table.shared > 0.5 * table.prediction_areas[table.columns]
    parts = np.bincount(table.rows[held], minlength=num_truth)
    holding = table.shared > 0.5 * table.truth_areas[table.rows]
    guests = np.bincount(table.columns[holding], minlength=num_predicted)
    values = (
        num_truth,
        num_predicted,
        aji_shared,
        aji_union,
        plus_shared,
        plus_union,
        matched,
        iou[iou > 0.5].sum(),
        num_detected,
        (parts >= 2).sum(),
        guests[guests >= 2].sum(),
    )
    return InstanceCounts(*(np.array([value]) for value in values))


def _aji(table: Overlaps) -> tuple[int, int]:
    """Numerator and denominator of the AJI: every true nucleus takes the predicted one of largest IoU."""
    iou = table.iou
    # Sorted by nucleus, then falling IoU, the first of each nucleus is its choice.
    order = np.lexsort((-iou, table.rows))
    _, first = np.unique(table.rows[order], return_index=True)
    best = order[first]
    shared = table.shared[best]
    union = table.truth_areas[table.rows[best]] + table.prediction_areas[table.columns[best]] - shared
    missed = np.delete(table.truth_areas, table.rows[best])
    unused = np.delete(table.prediction_areas, np.unique(table.columns[best]))
    return int(shared.sum()), int(union.sum() + missed.sum() + unused.sum())


def _aji_plus(table: Overlaps) -> tuple[int, int]:
    """Numerator and denominator of AJI+: pairs of largest total IoU, each nucleus in one at most."""
    chosen = _assignment(table.rows, table.columns, table.iou, (len(table.truth_areas), len(table.prediction_areas)))
    shared = int(table.shared[chosen].sum())
    return shared, int(table.truth_areas.sum() + table.prediction_areas.sum() - shared)


def _assignment(rows: np.ndarray, columns: np.ndarray, gain: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Chooses pairs of largest total gain, each row and column once; returns their positions in the list of pairs."""
    num_rows, num_columns = shape
    if not len(rows):
        return np.zeros(0, int)
    graph = coo_array(
        (np.ones(len(rows)), (rows, num_rows + columns)), shape=(num_rows + num_columns, num_rows + num_columns)
    )
    # Nuclei that do not share pixels through others decide apart, which keeps the tables small.
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


def _pairs_of_points(one: np.ndarray, other: np.ndarray) -> int:
    """Counts pairs of points within the radius, as many as possible and then as close as possible."""
    if not len(one) or not len(other):
        return 0
    near = KDTree(one).sparse_distance_matrix(KDTree(other), CENTROID_RADIUS_PX, output_type="coo_matrix")
    # A pair more always outweighs any distances.
    gain = 1e6 - near.data
    return len(_assignment(near.row, near.col, gain, near.shape))


def _belongs_to(table: Overlaps, keep_rows: np.ndarray) -> np.ndarray:
    """Tells which predicted nuclei share most pixels with a true nucleus that is kept."""
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


def aji(counts: InstanceCounts) -> np.ndarray:
    """Aggregated Jaccard index; a predicted nucleus may serve several true ones (Kumar et al. 2017, algorithm 1)."""
    return ratio(counts.aji_shared, counts.aji_union)


def aji_plus(counts: InstanceCounts) -> np.ndarray:
    """The same with one partner at most for each nucleus (Graham et al. 2019, arXiv:1812.06499)."""
    return ratio(counts.aji_plus_shared, counts.aji_plus_union)


def recognition_quality(counts: InstanceCounts, threshold: float = 0.5) -> np.ndarray:
    """F1 of nuclei that match with an IoU above the threshold, 2TP / (n + m) (Kirillov et al. 2019, equation 2)."""
    matched = counts.matched[..., THRESHOLDS.index(threshold)]
    return ratio(2 * matched, counts.num_truth + counts.num_predicted)


def segmentation_quality(counts: InstanceCounts) -> np.ndarray:
    """Mean IoU of the nuclei that match above 0.5; undefined where none does."""
    return ratio(counts.iou_sum, counts.matched[..., 0])


def panoptic_quality(counts: InstanceCounts) -> np.ndarray:
    """SQ times RQ: the IoU of matches, summed, over (n + m) / 2; 0 where nothing matches."""
    return ratio(2 * counts.iou_sum, counts.num_truth + counts.num_predicted)


def detection_f1(counts: InstanceCounts) -> np.ndarray:
    """F1 of centroids that lie within 12 pixels of each other, paired one to one."""
    return ratio(2 * counts.detected, counts.num_truth + counts.num_predicted)


def split_rate(counts: InstanceCounts) -> np.ndarray:
    """Share of the true nuclei that hold more than half of each of several predicted ones."""
    return ratio(counts.num_split, counts.num_truth)


def merge_rate(counts: InstanceCounts) -> np.ndarray:
    """Share of the true nuclei of which a predicted one, that holds more than half of it, holds another as well."""
    return ratio(counts.num_merged, counts.num_truth)


def count_error(counts: InstanceCounts) -> np.ndarray:
    """Predicted minus true number of nuclei."""
    return np.asarray(counts.num_predicted, np.float64) - counts.num_truth


def _f1_at(threshold: float) -> Callable[[InstanceCounts], np.ndarray]:
    return lambda counts: recognition_quality(counts, threshold)


INSTANCE_METRICS: Mapping[str, Callable[[InstanceCounts], np.ndarray]] = {
    "aji": aji,
    "aji_plus": aji_plus,
    "pq": panoptic_quality,
    "sq": segmentation_quality,
    "rq": recognition_quality,
    **{f"f1_{round(100 * threshold)}": _f1_at(threshold) for threshold in THRESHOLDS},
    "detection_f1": detection_f1,
    "split_rate": split_rate,
    "merge_rate": merge_rate,
    "count_error": count_error,
}
"""Scores of nuclei by name; `f1_50` equals `rq`."""


def join_counts(parts: Sequence[InstanceCounts]) -> InstanceCounts:
    """Puts the counts of images one behind the other."""
    return InstanceCounts(*(np.concatenate(fields) for fields in zip(*parts, strict=True)))


def pooled(counts: InstanceCounts) -> InstanceCounts:
    """Sums counts over images; fields of shape [1]."""
    return InstanceCounts(*(np.asarray(field).sum(axis=0, keepdims=True) for field in counts))
