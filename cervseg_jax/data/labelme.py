"""LabelMe polygons: writing them, and turning them into masks by the pixel-centre rule.

A pixel belongs to a polygon if its centre lies inside (even-odd rule). Coordinates are LabelMe's: the pixel in
column x and row y covers [x, x + 1) by [y, y + 1), its centre is at (x + 0.5, y + 0.5). OpenCV's `fillPoly` paints
the outline as well and makes a nucleus of 10 px radius a tenth larger.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np


class Window(NamedTuple):
    """A polygon's pixels within its bounding box."""

    top: int
    left: int
    inside: np.ndarray
    """bool [h, w]; may be empty."""


def rasterise_polygon(points: np.ndarray, *, shape: tuple[int, int]) -> Window:
    """Finds the pixels whose centres lie inside a closed polygon.

    Args:
      points: float [n, 2], x and y of the corners in order; the last joins the first.
      shape: height and width of the image; what lies outside is cut off.

    Returns:
      The pixels inside.

    Example:
      >>> rasterise_polygon(np.array([[1, 1], [3, 1], [3, 2], [1, 2]]), shape=(4, 4))
      Window(top=1, left=1, inside=array([[ True,  True]]))
    """
    x, y = np.asarray(points, np.float64).T
    height, width = shape
    left, right = _pixel_range(x, width)
    top, bottom = _pixel_range(y, height)
    rows = np.arange(top, bottom) + 0.5
    x_next, y_next = np.roll(x, -1), np.roll(y, -1)
    edge, row = np.nonzero((y[:, None] <= rows) != (y_next[:, None] <= rows))
    share = (rows[row] - y[edge]) / (y_next[edge] - y[edge])
    crossing = x[edge] + share * (x_next[edge] - x[edge])
    first_right_of_it = np.clip(np.ceil(crossing - 0.5).astype(int) - left, 0, right - left)
    toggles = np.zeros((bottom - top, right - left + 1), np.int32)
    np.add.at(toggles, (row, first_right_of_it), 1)
    inside = np.cumsum(toggles, axis=1)[:, :-1] % 2 == 1
    return Window(top, left, inside)


def draw_instances(polygons: Sequence[np.ndarray], *, shape: tuple[int, int]) -> np.ndarray:
    """Paints polygons into a label map; where they overlap, the later one lies on top.

    Args:
      polygons: float [n, 2] each.
      shape: height and width.

    Returns:
      int32 [h, w]: 0 for background, i + 1 for polygon i.
    """
    labels = np.zeros(shape, np.int32)
    for number, points in enumerate(polygons, start=1):
        top, left, inside = rasterise_polygon(points, shape=shape)
        region = labels[top : top + inside.shape[0], left : left + inside.shape[1]]
        region[inside] = number
    return labels


def labelme_document(polygons: Sequence[np.ndarray], *, image_path: str, shape: tuple[int, int]) -> str:
    """Returns the JSON text of a LabelMe file with one polygon per nucleus.

    Args:
      polygons: float [n, 2] each, in drawing order.
      image_path: path of the image as seen from the JSON file.
      shape: height and width of the image.

    Returns:
      JSON text.
    """
    shapes = [
        {
            "label": "nucleus",
            "points": np.round(points, 2).tolist(),
            "group_id": None,
            "shape_type": "polygon",
            "flags": {},
        }
        for points in polygons
    ]
    height, width = shape
    document = {
        "version": "5.5.0",
        "flags": {},
        "shapes": shapes,
        "imagePath": Path(image_path).as_posix(),
        "imageData": None,
        "imageHeight": height,
        "imageWidth": width,
    }
    return json.dumps(document, indent=1)


def _pixel_range(values: np.ndarray, size: int) -> tuple[int, int]:
    """First and last-plus-one pixel whose centre can lie within the values' extent."""
    first = int(np.clip(np.floor(values.min()), 0, size))
    last = int(np.clip(np.ceil(values.max()), 0, size))
    return first, max(first, last)
