"""Conversion between outlines and pixels by the pixel-center rule.

A pixel belongs to an outline if its center lies inside. The even-odd rule holds over all rings, so a second ring can
be a hole or another part. Coordinates are positions in the image: the pixel in column x and row y covers [x, x + 1) by
[y, y + 1) and its center is at (x + 0.5, y + 0.5). OpenCV's `fillPoly` also fills the pixels under the outline, which
enlarges a nucleus of 10 px radius by a tenth.
"""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int32, Real

from cervseg_jax.typing import typechecked

MAX_JOINED_PIXELS = 2**26
"""Largest bounding box, times the number of rings, within which rings are checked for overlap."""

Ring = Real[np.ndarray, "points 2"]
"""Closed ring of points with x and y; the last point joins the first."""
Rings = Sequence[Ring]
"""Closed rings of one nucleus."""


class Window(NamedTuple):
    """Pixels of a nucleus within its bounding box."""

    top: int
    left: int
    inside: Bool[np.ndarray, "h w"]
    """May be empty."""


def rasterize(rings: Rings, *, shape: tuple[int, int]) -> Window:
    """Returns the pixels whose centers lie inside an outline.

    Args:
      rings: the outline.
      shape: height and width of the image; pixels outside of it are cut off.

    Returns:
      The pixels and the position of their box.

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
    first_inside = np.clip(np.ceil(crossing - 0.5).astype(int) - left, 0, right - left)
    toggles = np.zeros((bottom - top, right - left + 1), np.int32)
    np.add.at(toggles, (row, first_inside), 1)
    inside = np.cumsum(toggles, axis=1)[:, :-1] % 2 == 1
    return Window(top, left, inside)


def draw_instances(outlines: Sequence[Rings], *, shape: tuple[int, int]) -> Int32[np.ndarray, "h w"]:
    """Paints outlines into a label map; where they overlap, the later one lies on top.

    Args:
      outlines: one per nucleus.
      shape: height and width.

    Returns:
      Label map: 0 for background, i + 1 for outline i.
    """
    labels = np.zeros(shape, np.int32)
    for label, rings in enumerate(outlines, start=1):
        top, left, inside = rasterize(rings, shape=shape)
        labels[top : top + inside.shape[0], left : left + inside.shape[1]][inside] = label
    return labels


def enclosed_area(rings: Rings) -> float:
    """Returns the area between the rings in square pixels; rings of opposite direction count as holes.

    Example:
      >>> enclosed_area([np.array([[0, 0], [4, 0], [4, 3]])])
      6.0
    """
    return abs(sum(signed_area(ring) for ring in rings))


def signed_area(ring: Ring) -> float:
    """Returns the area within a ring, positive if the ring runs clockwise on the screen."""
    x, y = np.asarray(ring, np.float64).T
    return float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


_TURN_RIGHT = {(0, 1): (1, 0), (1, 0): (0, -1), (0, -1): (-1, 0), (-1, 0): (0, 1)}


@typechecked
def trace(mask: Bool[np.ndarray, "h w"], *, top: int = 0, left: int = 0) -> list[Float[np.ndarray, "_ 2"]]:
    """Returns the outline of a mask along pixel edges.

    Rasterizing the rings restores the mask exactly. No ring crosses or touches itself: pixels that meet only at a
    corner get separate rings.

    Args:
      mask: pixels of the nucleus.
      top: row of the mask's first pixel in the image.
      left: its column.

    Returns:
      Rings of corners, outer ones clockwise on the screen, holes the other way round.

    Example:
      >>> trace(np.array([[True, True]]))[0].tolist()
      [[0.0, 0.0], [2.0, 0.0], [2.0, 1.0], [0.0, 1.0]]
    """
    steps = _edges(mask)
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
    """Splits a closed walk into rings that pass each corner once."""
    rings, walk = [], []
    for corner in corners:
        if corner in walk:
            where = walk.index(corner)
            rings.append(walk[where:])
            del walk[where:]
        walk.append(corner)
    return [walk, *rings]


@typechecked
def from_pixel_centers(ring: Ring) -> list[Float[np.ndarray, "_ 2"]]:
    """Converts an outline through the centers of border pixels to one along pixel edges.

    `cv2.findContours` and programs that use it write such outlines: integers that index pixels. Read as positions in
    the image, they lose half a pixel on every side, a tenth of the area of a small nucleus.

    Args:
      ring: columns and rows of pixels.

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
    """Returns unit steps (rows, columns) along the border, inside on the right, by their start corner."""
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
    """Returns the half-open range of pixels whose centers can lie within the extent of the values."""
    first = int(np.clip(np.floor(values.min()), 0, size))
    last = int(np.clip(np.ceil(values.max()), 0, size))
    return first, max(first, last)


def follows_pixel_centers(rings: Rings) -> bool:
    """Whether an outline looks like `cv2.findContours` made it: integer steps along rows, columns and diagonals only.

    Outlines along pixel edges have no diagonal steps, and outlines drawn by hand have steps of other slopes.

    Example:
      >>> follows_pixel_centers([np.array([[2, 0], [4, 2], [2, 4], [0, 2]])])
      True
      >>> follows_pixel_centers([np.array([[0, 0], [4, 0], [4, 4], [0, 4]])])
      False
    """
    steps = np.concatenate([np.abs(np.roll(ring, -1, axis=0) - ring) for ring in rings])
    is_diagonal = (steps[:, 0] == steps[:, 1]) & (steps[:, 0] > 0)
    is_straight = (steps == 0).any(axis=1)
    return has_whole_numbers(rings) and bool((is_diagonal | is_straight).all() and is_diagonal.any())


def has_whole_numbers(rings: Rings) -> bool:
    """Whether all coordinates of an outline are whole numbers."""
    return all((ring == np.rint(ring)).all() for ring in rings)


def join_parts(rings: Rings) -> Rings:
    """Makes the rings of one nucleus fit the even-odd rule.

    A ring within another one is a hole, and separate rings are parts. Rings that overlap in part would exclude each
    other's common pixels: they are united on the pixel grid.

    Args:
      rings: rings in any order and direction.

    Returns:
      The same rings, holes in the opposite direction; or the outline of their union.

    Example:
      >>> halves = [np.array([[0, 0], [5, 0], [5, 4], [0, 4.0]]), np.array([[3, 0], [8, 0], [8, 4], [3, 4.0]])]
      >>> enclosed_area(join_parts(halves))
      32.0
    """
    if len(rings) < 2:
        return rings
    points = np.concatenate(list(rings))
    left, top = np.floor(points.min(axis=0)).astype(int)
    width, height = (np.ceil(points.max(axis=0)).astype(int) - (left, top)).tolist()
    if width * height * len(rings) > MAX_JOINED_PIXELS:
        return rings
    by_area = sorted(rings, key=lambda ring: abs(signed_area(ring)), reverse=True)
    parts = [_within(rasterize([ring - (left, top)], shape=(height, width)), (height, width)) for ring in by_area]
    joined, has_overlap, directed = np.zeros((height, width), bool), False, []
    for index, (ring, part) in enumerate(zip(by_area, parts, strict=True)):
        depth = sum(not (part & ~larger).any() and (larger & ~part).any() for larger in parts[:index])
        has_overlap |= depth == 0 and bool((joined & part).any())
        joined = joined ^ part if depth else joined | part
        directed.append(ring if (signed_area(ring) > 0) == (depth % 2 == 0) else ring[::-1])
    return trace(joined, top=int(top), left=int(left)) if has_overlap else directed


def _within(window: Window, shape: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[window.top : window.top + window.inside.shape[0], window.left : window.left + window.inside.shape[1]] = (
        window.inside
    )
    return mask
