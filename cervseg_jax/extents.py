"""Whole nuclei that may overlap: the pixels of each one, and label maps that hold them without loss.

A label map shows the topmost nucleus of each pixel. What lies beneath is kept in further label maps, `covered`: they
hold the whole extent of every nucleus that is partly covered, under its label, and nuclei in one of them do not
overlap. A nucleus that is in none of them is whole in the label map itself.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int32

from cervseg_jax.label_maps import Labels, Overlaps, bounding_boxes

Z_ORDER = "smaller nuclei lie on top of larger ones"


class Extent(NamedTuple):
    """The pixels of one nucleus within a box of the image."""

    top: int
    left: int
    inside: Bool[np.ndarray, "h w"]

    @property
    def area(self) -> int:
        """Number of pixels."""
        return int(np.count_nonzero(self.inside))

    @property
    def window(self) -> tuple[slice, slice]:
        """The box as rows and columns of the image."""
        height, width = self.inside.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)

    def moved(self, down: int, right: int) -> "Extent":
        """Returns the extent at another place."""
        return Extent(self.top + down, self.left + right, self.inside)


def trimmed(inside: Bool[np.ndarray, "h w"], *, top: int = 0, left: int = 0) -> Extent | None:
    """Returns the smallest extent with the same pixels; None if there is no pixel."""
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    if not len(rows):
        return None
    box = inside[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return Extent(top + int(rows[0]), left + int(columns[0]), np.ascontiguousarray(box))


def extents_of(labels: Labels, covered: Sequence[Labels] = ()) -> dict[int, Extent]:
    """Returns the whole extent of every nucleus by its label, in ascending order of the labels.

    Args:
      labels: label map, 0 for background.
      covered: label maps of the nuclei that are partly covered.

    Example:
      >>> found = extents_of(np.array([[1, 2, 2]]), [np.array([[1, 1, 0]])])
      >>> {label: extent.area for label, extent in found.items()}
      {1: 2, 2: 2}
    """
    found: dict[int, Extent] = {}
    for layer in (labels, *covered):
        present = np.unique(layer[layer > 0])
        for label, (top, left, bottom, right) in zip(present.tolist(), bounding_boxes(layer).tolist(), strict=True):
            found[label] = Extent(top, left, np.asarray(layer[top:bottom, left:right] == label))
    return dict(sorted(found.items()))


def paint(extents: Mapping[int, Extent], labels: Int32[np.ndarray, "h w"]) -> None:
    """Paints nuclei into a label map, the smaller ones on top; among equals the one with the larger label.

    Args:
      extents: nuclei by label, each within the image.
      labels: receives the labels.
    """
    for label in sorted(extents, key=lambda label: (-extents[label].area, label)):
        extent = extents[label]
        labels[extent.window][extent.inside] = label


def layers_of(
    extents: Mapping[int, Extent], *, shape: tuple[int, int]
) -> tuple[Int32[np.ndarray, "h w"], tuple[Int32[np.ndarray, "h w"], ...]]:
    """Returns the label map of nuclei, the smaller ones on top, and the label maps of those that are partly covered.

    Args:
      extents: nuclei by label, each within the image.
      shape: height and width of the image.

    Returns:
      Label map and `covered`, from which `extents_of` restores the nuclei.

    Example:
      >>> whole = {1: Extent(0, 0, np.ones((1, 3), bool)), 2: Extent(0, 2, np.ones((1, 2), bool))}
      >>> labels, covered = layers_of(whole, shape=(1, 4))
      >>> labels.tolist(), [layer.tolist() for layer in covered]
      ([[1, 1, 2, 2]], [[[1, 1, 1, 0]]])
    """
    labels = np.zeros(shape, np.int32)
    paint(extents, labels)
    return labels, covered_layers(extents, labels)


def covered_layers(
    extents: Mapping[int, Extent], labels: Int32[np.ndarray, "h w"]
) -> tuple[Int32[np.ndarray, "h w"], ...]:
    """Returns the label maps of the nuclei that a label map does not show whole, in whatever order it was painted."""
    covered: list[np.ndarray] = []
    for label, extent in extents.items():
        if (labels[extent.window][extent.inside] == label).all():
            continue
        free = (layer for layer in covered if not layer[extent.window][extent.inside].any())
        layer = next(free, None)
        if layer is None:
            layer = np.zeros(labels.shape, np.int32)
            covered.append(layer)
        layer[extent.window][extent.inside] = label
    return tuple(covered)


def shared_pixels(one: Extent, other: Extent) -> int:
    """Returns the number of pixels that two nuclei have in common."""
    top, left = max(one.top, other.top), max(one.left, other.left)
    bottom = min(one.top + one.inside.shape[0], other.top + other.inside.shape[0])
    right = min(one.left + one.inside.shape[1], other.left + other.inside.shape[1])
    if bottom <= top or right <= left:
        return 0
    own, its = (
        extent.inside[top - extent.top : bottom - extent.top, left - extent.left : right - extent.left]
        for extent in (one, other)
    )
    return int(np.count_nonzero(own & its))


class BoxIndex:
    """Finds the extents whose boxes share pixels with a given one; sorted by their tops, so that few are looked at."""

    def __init__(self, extents: Sequence[Extent]) -> None:
        """Keeps the boxes."""
        tops = np.array([extent.top for extent in extents], np.int64)
        self._order = np.argsort(tops, kind="stable")
        self._boxes = np.array(
            [[e.top, e.left, e.top + e.inside.shape[0], e.left + e.inside.shape[1]] for e in extents], np.int64
        ).reshape(-1, 4)[self._order]
        self._tallest = int((self._boxes[:, 2] - self._boxes[:, 0]).max(initial=0))

    def near(self, extent: Extent) -> np.ndarray:
        """Returns the indices of the extents, in ascending order."""
        rows, columns = extent.window
        first = np.searchsorted(self._boxes[:, 0], rows.start - self._tallest, side="right")
        last = max(first, np.searchsorted(self._boxes[:, 0], rows.stop, side="left"))
        boxes = self._boxes[first:last]
        meets = (boxes[:, 2] > rows.start) & (boxes[:, 1] < columns.stop) & (boxes[:, 3] > columns.start)
        return np.sort(self._order[first:last][meets])


def extent_overlaps(truth: Sequence[Extent], prediction: Sequence[Extent]) -> Overlaps:
    """Counts the pixels that each true and each predicted nucleus have in common; nuclei of one side may overlap."""
    index = BoxIndex(prediction)
    near = [index.near(extent) for extent in truth]
    rows = np.repeat(np.arange(len(truth)), [len(found) for found in near])
    columns = np.concatenate([*near, np.zeros(0, np.int64)]).astype(np.int64)
    pairs = zip(rows.tolist(), columns.tolist(), strict=True)
    shared = np.array([shared_pixels(truth[row], prediction[column]) for row, column in pairs], np.int64)
    meets = shared > 0
    return Overlaps(
        np.array([extent.area for extent in truth], np.int64),
        np.array([extent.area for extent in prediction], np.int64),
        rows[meets].astype(np.int64),
        columns[meets].astype(np.int64),
        shared[meets],
    )


def overlap_degrees(extents: Sequence[Extent]) -> np.ndarray:
    """Returns the degree of overlap of each nucleus with the nucleus that it overlaps most, float64 [n] in [0, 1].

    The degree of a pair is the number of common pixels over the area of the smaller nucleus.
    """
    table = extent_overlaps(extents, extents)
    others = table.rows != table.columns
    rows, columns, shared = table.rows[others], table.columns[others], table.shared[others]
    degrees = np.zeros(len(extents))
    np.maximum.at(degrees, rows, shared / np.minimum(table.truth_areas[rows], table.truth_areas[columns]))
    return degrees
