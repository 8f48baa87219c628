"""Outlines of nuclei: from rings of points to pixels by the pixel-center rule, and back.

A pixel belongs to an outline if its center lies inside (even-odd rule over all rings, so a second ring can be a hole
or another part). Coordinates are positions in the image: the pixel in column x and row y covers [x, x + 1) by
[y, y + 1), its center is at (x + 0.5, y + 0.5). OpenCV's `fillPoly` paints the outline as well and makes a nucleus of
10 px radius a tenth larger.
"""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

Rings = Sequence[np.ndarray]
"""Closed rings of one nucleus, float [n, 2] each with x and y; the last point joins the first."""


class Window(NamedTuple):
    """A nucleus' pixels within its bounding box."""

    top: int
    left: int
    inside: np.ndarray
    """bool [h, w]; may be empty."""


def rasterize(rings: Rings, *, shape: tuple[int, int]) -> Window:
    """Finds the pixels whose centers lie inside.

    Args:
      rings: the outline.
      shape: height and width of the image; what lies outside is cut off.

    Returns:
      The pixels inside.

    Example:
      >>> rasterize([np.array([[1, 1], [3, 1], [3, 2], [1, 2]])], shape=(4, 4))
      Window(top=1, left=1, inside=array([[ True,  True]]))
    """
    starts = np.concatenate([np.asarray(ring, np.float64) for ring in rings])
    ends = np.concatenate([np.roll(np.asarray(ring, np.float64), -1, axis=0) for ring in rings])
    left, right = _pixel_range(starts[:, 0], shape[1])
    top, bottom = _pixel_range(starts[:, 1], shape[0])
    rows = np.arange(top, bottom) + 0.5
    edge, row = np.nonzero((starts[:, 1, None] <= rows) != (ends[:, 1, None] <= rows))
    share = (rows[row] - starts[edge, 1]) / (ends[edge, 1] - starts[edge, 1])
    crossing = starts[edge, 0] + share * (ends[edge, 0] - starts[edge, 0])
    first_right_of_it = np.clip(np.ceil(crossing - 0.5).astype(int) - left, 0, right - left)
    toggles = np.zeros((bottom - top, right - left + 1), np.int32)
    np.add.at(toggles, (row, first_right_of_it), 1)
    inside = np.cumsum(toggles, axis=1)[:, :-1] % 2 == 1
    return Window(top, left, inside)


def draw_instances(outlines: Sequence[Rings], *, shape: tuple[int, int]) -> np.ndarray:
    """Paints outlines into a label map; where they overlap, the later one lies on top.

    Args:
      outlines: one per nucleus.
      shape: height and width.

    Returns:
      int32 [h, w]: 0 for background, i + 1 for outline i.
    """
    labels = np.zeros(shape, np.int32)
    for number, rings in enumerate(outlines, start=1):
        top, left, inside = rasterize(rings, shape=shape)
        labels[top : top + inside.shape[0], left : left + inside.shape[1]][inside] = number
    return labels


def enclosed_area(rings: Rings) -> float:
    """Returns the area between the rings in pixels; holes that run the other way round are subtracted.

    Example:
      >>> enclosed_area([np.array([[0, 0], [4, 0], [4, 3]])])
      6.0
    """
    return abs(sum(signed_area(ring) for ring in rings))


def signed_area(ring: np.ndarray) -> float:
    """Returns the area within a ring; positive where it runs clockwise on the screen."""
    x, y = np.asarray(ring, np.float64).T
    return float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


_TURN_RIGHT = {(0, 1): (1, 0), (1, 0): (0, -1), (0, -1): (-1, 0), (-1, 0): (0, 1)}


def trace(mask: np.ndarray, *, top: int = 0, left: int = 0) -> list[np.ndarray]:
    """Walks along the pixel edges around a mask.

    Rasterizing the rings gives the mask back exactly. No ring crosses or touches itself: where two pixels meet at a
    corner alone, they get rings of their own.

    Args:
      mask: bool [h, w].
      top: row of the mask's first pixel in the image.
      left: its column.

    Returns:
      Rings of corners, outer ones clockwise on the screen, holes the other way round.

    Example:
      >>> trace(np.array([[True, True]]))[0].tolist()
      [[0.0, 0.0], [2.0, 0.0], [2.0, 1.0], [0.0, 1.0]]
    """
    steps = _edges(np.asarray(mask, bool))
    rings = []
    while steps:
        start = point = min(steps)
        first = heading = steps[start][0]
        corners = [start]
        while True:
            steps[point].remove(heading)
            if not steps[point]:
                del steps[point]
            point = (point[0] + heading[0], point[1] + heading[1])
            right = _TURN_RIGHT[heading]
            if point == start and (point not in steps or right == first):
                break
            following = right if right in steps[point] else steps[point][0]
            if following != heading:
                corners.append(point)
            heading = following
        rings += [np.array(ring, np.float64)[:, ::-1] + (left, top) for ring in _simple_rings(corners)]
    return rings


def _simple_rings(corners: list[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """Cuts a walk into rings that pass each corner once; it comes back to one where the mask touches itself."""
    rings, walk = [], []
    for corner in corners:
        if corner in walk:
            where = walk.index(corner)
            rings.append(walk[where:])
            del walk[where:]
        walk.append(corner)
    return [walk, *rings]


def from_pixel_centers(ring: np.ndarray) -> list[np.ndarray]:
    """Turns an outline through the centers of a nucleus' border pixels into one along pixel edges.

    `cv2.findContours` and programs built on it write such outlines, in whole numbers that name pixels. Taken for
    positions in the image they would lose half a pixel all round, a tenth of a small nucleus.

    Args:
      ring: [n, 2], columns and rows of pixels.

    Returns:
      Rings that enclose the same pixels, border included.

    Example:
      >>> from_pixel_centers(np.array([[2, 3], [4, 3]]))[0].tolist()
      [[2.0, 3.0], [5.0, 3.0], [5.0, 4.0], [2.0, 4.0]]
    """
    pixels = np.rint(ring).astype(np.int32)
    left, top = pixels.min(axis=0).tolist()
    width, height = (pixels.max(axis=0) - (left, top) + 1).tolist()
    canvas = np.zeros((height, width), np.uint8)
    cv2.fillPoly(canvas, [pixels - np.array([left, top], np.int32)], 1)
    return trace(canvas > 0, top=top, left=left)


def _edges(mask: np.ndarray) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """Unit steps (rows, columns) along the border with the inside on the right, by the corner they start from."""
    inside = np.pad(mask, 1)
    core = inside[1:-1, 1:-1]
    borders = (
        (core & ~inside[:-2, 1:-1], (0, 0), (0, 1)),
        (core & ~inside[1:-1, 2:], (0, 1), (1, 0)),
        (core & ~inside[2:, 1:-1], (1, 1), (0, -1)),
        (core & ~inside[1:-1, :-2], (1, 0), (-1, 0)),
    )
    steps: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for border, corner, heading in borders:
        for row, column in np.argwhere(border).tolist():
            steps.setdefault((row + corner[0], column + corner[1]), []).append(heading)
    return steps


def _pixel_range(values: np.ndarray, size: int) -> tuple[int, int]:
    """First and last-plus-one pixel whose center can lie within the values' extent."""
    first = int(np.clip(np.floor(values.min()), 0, size))
    last = int(np.clip(np.ceil(values.max()), 0, size))
    return first, max(first, last)
