"""Geometry of label maps: overlaps, centroids, bounding boxes, touching nuclei, surface distances.

Label maps hold 0 for background; other labels need not be contiguous. Results have one row per label in ascending
order.
"""

from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float64, Int64, Integer

from cervseg_jax.typing import typechecked

STEPS = ((0, 1), (1, 0), (1, 1), (1, -1))
"""Offsets (rows, columns) to half of the eight neighbors of a pixel; the negated ones give the other half."""


def neighbors(values: np.ndarray, step: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Returns two views of an array [h, w], shifted against each other: pixels, and their neighbors at an offset."""
    (down, across), width = step, values.shape[1]
    left, far = max(0, -across), width - max(0, across)
    return values[: values.shape[0] - down, left:far], values[down:, left + across : far + across]


class Overlaps(NamedTuple):
    """Overlapping nuclei of two label maps."""

    truth_areas: np.ndarray
    """int64 [n], pixels."""
    prediction_areas: np.ndarray
    """int64 [m]."""
    rows: np.ndarray
    """Index into `truth_areas` of each overlapping pair, [k]."""
    columns: np.ndarray
    """Index into `prediction_areas` of each overlapping pair, [k]."""
    shared: np.ndarray
    """Pixels in common, int64 [k]."""

    @property
    def iou(self) -> np.ndarray:
        """Intersection over union of each pair, [k]."""
        union = self.truth_areas[self.rows] + self.prediction_areas[self.columns] - self.shared
        return self.shared / union


def overlaps(truth: np.ndarray, prediction: np.ndarray) -> Overlaps:
    """Counts the pixels that nuclei of two label maps have in common.

    Args:
      truth: integer labels [h, w].
      prediction: integer labels [h, w].

    Returns:
      Areas and overlapping pairs.

    Raises:
      ValueError: if the shapes differ.
    """
    if truth.shape != prediction.shape:
        raise ValueError(f"overlaps: shapes must be equal, got {truth.shape} and {prediction.shape}")
    inside = (truth > 0) | (prediction > 0)
    true_labels, row = np.unique(np.append(truth[inside], 0), return_inverse=True)
    predicted_labels, column = np.unique(np.append(prediction[inside], 0), return_inverse=True)
    # The appended pixel makes 0 the first label of both maps; its count is subtracted again.
    pairs, shared = np.unique(row.astype(np.int64) * len(predicted_labels) + column, return_counts=True)
    shared[pairs == 0] -= 1
    rows, columns = np.divmod(pairs, len(predicted_labels))
    true_areas = np.bincount(rows, shared, len(true_labels)).astype(np.int64)[1:]
    predicted_areas = np.bincount(columns, shared, len(predicted_labels)).astype(np.int64)[1:]
    both = (rows > 0) & (columns > 0)
    return Overlaps(true_areas, predicted_areas, rows[both] - 1, columns[both] - 1, shared[both])


@typechecked
def centroids(labels: Integer[np.ndarray, "h w"]) -> Float64[np.ndarray, "n 2"]:
    """Returns row and column of the centroid of each nucleus, means of the pixel centers."""
    rows, columns = np.nonzero(labels)
    unique, owner = np.unique(labels[rows, columns], return_inverse=True)
    areas = np.bincount(owner, minlength=len(unique))
    sums = [np.bincount(owner, places, len(unique)) for places in (rows, columns)]
    return np.stack(sums, axis=1) / np.maximum(areas, 1)[:, None] if len(unique) else np.zeros((0, 2))


@typechecked
def touching(labels: Integer[np.ndarray, "h w"]) -> Bool[np.ndarray, " n"]:
    """Returns which nuclei touch another one at a side or corner."""
    found = np.unique(labels[labels > 0])
    touched = []
    for step in STEPS:
        here, there = neighbors(labels, step)
        differ = (here != there) & (here > 0) & (there > 0)
        touched += [here[differ], there[differ]]
    return np.isin(found, np.concatenate(touched))


class SurfaceDistances(NamedTuple):
    """Distances between the borders of matched nuclei, one value per pair, in pixels."""

    hd95: np.ndarray
    """The larger of the two directed 95th percentiles."""
    assd: np.ndarray
    """Mean over the border pixels of both nuclei."""


def surface_distances(truth: np.ndarray, prediction: np.ndarray) -> SurfaceDistances:
    """Measures distances between the borders of nuclei that match with an IoU above 0.5.

    Border pixels are those of the nucleus with a side neighbor outside of it.

    Args:
      truth: integer labels [h, w].
      prediction: integer labels [h, w].

    Returns:
      Distances per pair; empty where nothing matches.

    Reference: Heimann et al. 2009, doi:10.1109/TMI.2009.2013851 (ASSD); Huttenlocher et al. 1993 (HD).
    """
    table = overlaps(truth, prediction)
    good = table.iou > 0.5
    true_labels, predicted_labels = (np.unique(labels[labels > 0]) for labels in (truth, prediction))
    true_boxes, predicted_boxes = bounding_boxes(truth), bounding_boxes(prediction)
    hd95, assd = [], []
    for row, column in zip(table.rows[good], table.columns[good], strict=True):
        top, left = np.minimum(true_boxes[row][:2], predicted_boxes[column][:2])
        bottom, right = np.maximum(true_boxes[row][2:], predicted_boxes[column][2:])
        window = np.s_[top:bottom, left:right]
        borders = [
            _border(labels[window] == label)
            for labels, label in ((truth, true_labels[row]), (prediction, predicted_labels[column]))
        ]
        fields = [
            cv2.distanceTransform((~border).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE) for border in borders
        ]
        there, back = fields[1][borders[0]], fields[0][borders[1]]
        hd95.append(max(np.percentile(there, 95), np.percentile(back, 95)))
        assd.append((there.sum() + back.sum()) / (len(there) + len(back)))
    return SurfaceDistances(np.array(hd95), np.array(assd))


def _border(inside: np.ndarray) -> np.ndarray:
    padded = np.pad(inside, 1)
    core = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return inside & ~core


@typechecked
def bounding_boxes(labels: Integer[np.ndarray, "h w"]) -> Int64[np.ndarray, "n 4"]:
    """Returns top, left, bottom and right (exclusive) of each nucleus."""
    rows, columns = np.nonzero(labels)
    unique, owner = np.unique(labels[rows, columns], return_inverse=True)
    boxes = np.zeros((len(unique), 4), np.int64)
    boxes[:, :2] = np.iinfo(np.int64).max
    for axis, places in enumerate((rows, columns)):
        np.minimum.at(boxes[:, axis], owner, places)
        np.maximum.at(boxes[:, axis + 2], owner, places + 1)
    return boxes
