"""Properties of nuclei in label maps: overlaps, centroids, contacts, distances between borders, bounding boxes.

Labels need not be contiguous. Results are in ascending order of the labels, and positions count from 0 in that order.
"""

from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Integer, Shaped

from cervseg_jax.typing import typechecked

Labels = Integer[np.ndarray, "h w"]
"""Label map: 0 for background, other values for nuclei."""

STEPS = ((0, 1), (1, 0), (1, 1), (1, -1))
"""Row and column offsets of four of the eight neighbors of a pixel; the others are their negatives."""


@typechecked
def distinct(
    values: Integer[np.ndarray, "*shape"],
) -> tuple[Integer[np.ndarray, " n"], Int[np.ndarray, "*shape"]]:
    """Returns the distinct values in ascending order, and the position of each element's value among them.

    Equal to `numpy.unique` with its inverse, but counts where that sorts, if no value exceeds the number of elements.

    Example:
      >>> distinct(np.array([[4, 0], [4, 1]]))
      (array([0, 1, 4]), array([[2, 0],
             [2, 1]]))
    """
    if not values.size or values.min() < 0 or values.max() >= values.size:
        found, positions = np.unique(values, return_inverse=True)
        return found, positions.reshape(values.shape)
    is_present = np.zeros(int(values.max()) + 1, bool)
    is_present[values.ravel()] = True
    return np.flatnonzero(is_present).astype(values.dtype), (np.cumsum(is_present) - 1)[values]


def neighbors(
    values: Shaped[np.ndarray, "h w"], step: tuple[int, int]
) -> tuple[Shaped[np.ndarray, "_ _"], Shaped[np.ndarray, "_ _"]]:
    """Returns two views that hold, at the same index, a pixel and its neighbor one step away."""
    (down, across), width = step, values.shape[1]
    left, far = max(0, -across), width - max(0, across)
    return values[: values.shape[0] - down, left:far], values[down:, left + across : far + across]


@typechecked
def inner_borders(labels: Shaped[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Returns which pixels of nuclei have another label, or background, among their eight neighbors.

    The edge of the image is no border.

    Args:
      labels: label map, or a mask; below 2^24.

    Example:
      >>> inner_borders(np.array([[1, 1, 1, 0], [1, 1, 2, 2]])).astype(int)
      array([[0, 1, 1, 0],
             [0, 1, 1, 1]])
    """
    values = labels.astype(np.float32, copy=False)  # OpenCV has no int32 morphology
    kernel = np.ones((3, 3), np.uint8)
    return (values > 0) & ((cv2.dilate(values, kernel) != values) | (cv2.erode(values, kernel) != values))


@typechecked
def distance_to_border(mask: Bool[np.ndarray, "h w"]) -> Float32[np.ndarray, "h w"]:
    """Returns the Euclidean distance of each pixel of a mask to the nearest pixel outside; 0 outside.

    The edge of the image is no border. Squares of distances are whole numbers, to which they are rounded: OpenCV's last
    bits depend on where an array lies in memory and on the number of threads, and decide ties of a watershed. Distances
    above some 1,000 pixels may differ in the last bits.

    Example:
      >>> np.square(distance_to_border(np.array([[1, 1, 1], [1, 1, 0]], bool))).round().tolist()
      [[5.0, 2.0, 1.0], [4.0, 1.0, 0.0]]
    """
    distance = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.sqrt(np.rint(np.square(np.asarray(distance, np.float64)))).astype(np.float32)


class Overlaps(NamedTuple):
    """Pairs of nuclei of two label maps that share pixels."""

    truth_areas: Int[np.ndarray, " n"]
    """Pixels of each true nucleus."""
    prediction_areas: Int[np.ndarray, " m"]
    """Pixels of each predicted nucleus."""
    rows: Int[np.ndarray, " k"]
    """Position of the true nucleus of each pair."""
    columns: Int[np.ndarray, " k"]
    """Position of the predicted nucleus of each pair."""
    shared: Int[np.ndarray, " k"]
    """Pixels that both nuclei of a pair have in common."""

    @property
    def iou(self) -> Float[np.ndarray, " k"]:
        """Intersection over union of each pair."""
        union = self.truth_areas[self.rows] + self.prediction_areas[self.columns] - self.shared
        return self.shared / union


@typechecked
def overlaps(truth: Labels, prediction: Labels) -> Overlaps:
    """Counts the pixels that each true and each predicted nucleus have in common."""
    inside = (truth > 0) | (prediction > 0)
    true_labels, row = distinct(np.append(truth[inside], 0))
    predicted_labels, column = distinct(np.append(prediction[inside], 0))
    # The appended background pixel makes 0 the first label of both; its count is subtracted again.
    pairs, shared = np.unique(row.astype(np.int64) * len(predicted_labels) + column, return_counts=True)
    shared[pairs == 0] -= 1
    rows, columns = np.divmod(pairs, len(predicted_labels))
    true_areas = np.bincount(rows, shared, len(true_labels)).astype(np.int64)[1:]
    predicted_areas = np.bincount(columns, shared, len(predicted_labels)).astype(np.int64)[1:]
    both = (rows > 0) & (columns > 0)
    return Overlaps(true_areas, predicted_areas, rows[both] - 1, columns[both] - 1, shared[both])


@typechecked
def centroids(labels: Labels) -> Float[np.ndarray, "n 2"]:
    """Returns row and column of each nucleus' centroid; pixel centers have whole numbers."""
    rows, columns = np.nonzero(labels)
    unique, owner = distinct(labels[rows, columns])
    areas = np.bincount(owner, minlength=len(unique))
    sums = [np.bincount(owner, places, len(unique)) for places in (rows, columns)]
    return np.stack(sums, axis=1) / np.maximum(areas, 1)[:, None] if len(unique) else np.zeros((0, 2))


@typechecked
def touching(labels: Labels) -> Bool[np.ndarray, " n"]:
    """Returns which nuclei share a pixel edge or corner with another one.

    Example:
      >>> touching(np.array([[1, 2, 0, 3]])).sum()
      np.int64(2)
    """
    found = np.unique(labels[labels > 0])
    touched = []
    for step in STEPS:
        here, there = neighbors(labels, step)
        differ = (here != there) & (here > 0) & (there > 0)
        touched += [here[differ], there[differ]]
    return np.isin(found, np.concatenate(touched))


class SurfaceDistances(NamedTuple):
    """Distances between the borders of matched nuclei in pixels, one per pair."""

    hd95: Float[np.ndarray, " pairs"]
    """Larger of the two directed 95th percentiles."""
    assd: Float[np.ndarray, " pairs"]
    """Mean over the border pixels of both nuclei."""


@typechecked
def surface_distances(truth: Labels, prediction: Labels) -> SurfaceDistances:
    """Measures the distances between the borders of nuclei that match with an IoU above 0.5.

    Border pixels are those of the nucleus with one of their four neighbors outside of it.

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
            _surface(labels[window] == label)
            for labels, label in ((truth, true_labels[row]), (prediction, predicted_labels[column]))
        ]
        fields = [distance_to_border(~border) for border in borders]
        there, back = fields[1][borders[0]], fields[0][borders[1]]
        hd95.append(max(np.percentile(there, 95), np.percentile(back, 95)))
        assd.append((there.sum() + back.sum()) / (len(there) + len(back)))
    return SurfaceDistances(np.array(hd95), np.array(assd))


def _surface(inside: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Returns the pixels with one of their four neighbors outside; what lies beyond the array is outside."""
    padded = np.pad(inside, 1)
    core = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return inside & ~core


@typechecked
def bounding_boxes(labels: Labels) -> Int[np.ndarray, "n 4"]:
    """Returns top, left, bottom and right of each nucleus; bottom and right are exclusive."""
    rows, columns = np.nonzero(labels)
    unique, owner = distinct(labels[rows, columns])
    boxes = np.zeros((len(unique), 4), np.int64)
    boxes[:, :2] = np.iinfo(np.int64).max
    for axis, places in enumerate((rows, columns)):
        np.minimum.at(boxes[:, axis], owner, places)
        np.maximum.at(boxes[:, axis + 2], owner, places + 1)
    return boxes
