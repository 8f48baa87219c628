"""Outlines of nuclei as polygons with holes, along pixel edges: rasterized again they give the same pixels."""

from typing import NamedTuple

import cv2
import numpy as np

from cervseg_jax.annotations.outlines import Ring, rasterize, signed_area, trace
from cervseg_jax.label_maps import Labels, bounding_boxes
from cervseg_jax.typing import typechecked


class Polygon(NamedTuple):
    """An outer ring with its holes."""

    outer: Ring
    holes: list[Ring]

    def moved(self, right: float, down: float) -> "Polygon":
        """Returns the polygon at another place."""
        return Polygon(self.outer + (right, down), [hole + (right, down) for hole in self.holes])


@typechecked
def polygons_of(labels: Labels) -> list[list[Polygon]]:
    """Traces every nucleus.

    Args:
      labels: label map.

    Returns:
      For each nucleus, in the order of the labels, its polygons; more than one where its pixels meet at corners alone.
      No ring crosses or touches itself.
    """
    found = np.unique(labels[labels > 0])
    traced = []
    for label, (top, left, bottom, right) in zip(found, bounding_boxes(labels), strict=True):
        rings = trace(labels[top:bottom, left:right] == label, top=int(top), left=int(left))
        outer = [Polygon(ring, []) for ring in rings if signed_area(ring) > 0]
        for ring in rings:
            if signed_area(ring) < 0:
                next(polygon for polygon in outer if _contains(polygon.outer, ring)).holes.append(ring)
        traced.append(outer)
    return traced


def _contains(outer: np.ndarray, hole: np.ndarray) -> bool:
    """Whether a hole lies within a ring: whether the ring's area holds a pixel of the hole."""
    x, y = hole.min(axis=0)
    width, height = (hole.max(axis=0) - (x, y)).astype(int)
    inner = rasterize([hole - (x, y)], shape=(height, width))
    row, column = np.argwhere(inner.inside)[0] + (inner.top, inner.left)
    own = rasterize([outer - (x, y)], shape=(height, width))
    row, column = row - own.top, column - own.left
    return 0 <= row < own.inside.shape[0] and 0 <= column < own.inside.shape[1] and bool(own.inside[row, column])


TOLERANCE_PX = 0.8
"""Corners that move an outline by less are left out by `simplified`."""


def simplified(ring: Ring) -> np.ndarray:
    """Returns a ring with fewer corners, none further than `TOLERANCE_PX` from it: for drawing, and for editing.

    Reference: Douglas and Peucker 1973, doi:10.3138/FM57-6770-U75U-7727.

    Example:
      >>> stairs = np.array([[0, 0], [2, 0], [2, 1], [3, 1], [3, 2], [4, 2], [4, 6], [0, 6.0]])
      >>> len(simplified(stairs))
      5
    """
    corners = cv2.approxPolyDP(np.asarray(ring, np.float32)[:, None], TOLERANCE_PX, True)[:, 0]
    return corners.astype(np.float64) if len(corners) >= 3 else np.asarray(ring, np.float64)
