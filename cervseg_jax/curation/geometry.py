"""Padding, resizing and tiling of images together with their outlines and label maps.

A transform is `position' = scale * position + shift`, per axis, on positions in the image (pixel edges at integers).
Outlines are transformed exactly and rasterized afterwards, so that resizing never blurs or thickens a nucleus.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from cervseg_jax.annotations.outlines import Rings
from cervseg_jax.choices import Padding
from cervseg_jax.data.resize import border_color, resize_image, resize_mask


class Geometry(NamedTuple):
    """Operations on each source image, in this order."""

    padding: Padding = "none"
    size: tuple[int, int] | None = None
    """Height and width after resizing; None keeps the scale."""
    tile: tuple[int, int] | None = None
    """Height and width of the tiles that it is cut into; None keeps it whole."""


class Affine(NamedTuple):
    """Scale and shift of x and y."""

    scale: tuple[float, float] = (1.0, 1.0)
    shift: tuple[float, float] = (0.0, 0.0)

    def then(self, scale: tuple[float, float], shift: tuple[float, float]) -> "Affine":
        """Returns this transform followed by another one."""
        return Affine(
            (self.scale[0] * scale[0], self.scale[1] * scale[1]),
            (self.shift[0] * scale[0] + shift[0], self.shift[1] * scale[1] + shift[1]),
        )

    def apply(self, rings: Rings) -> Rings:
        """Returns transformed rings."""
        return [ring * self.scale + self.shift for ring in rings]

    def __str__(self) -> str:
        """Returns the transform as the manifest shows it."""
        return f"x*{self.scale[0]:.6g}{self.shift[0]:+.6g} y*{self.scale[1]:.6g}{self.shift[1]:+.6g}"


class Tile(NamedTuple):
    """A transformed image, or one tile of it."""

    suffix: str
    """Addition to the stem; empty for a whole image."""
    image: np.ndarray
    labels: np.ndarray | None
    """int32 [h, w] or [h, w, layers], if the source has label maps instead of outlines."""
    transform: Affine
    """From positions in the source image to positions in this tile."""


def cut_tiles(image: np.ndarray, labels: np.ndarray | None, geometry: Geometry) -> Iterator[Tile]:
    """Applies the geometry to an image.

    Args:
      image: uint8 [h, w, 3].
      labels: int32 [h, w] or [h, w, layers], or None.
      geometry: operations to apply.

    Yields:
      The whole image, or its tiles row by row. Tiles that reach beyond the image are filled with its border color.
    """
    transform = Affine()
    if geometry.padding != "none":
        height, width = image.shape[:2]
        side = max(height, width)
        top, left = (side - height) // 2, (side - width) // 2
        row, column = min(2, height - 1), min(2, width - 1)
        color = image[row, column] if geometry.padding == "square_reference" else border_color(image)
        image = _placed(image, (side, side), top, left, color)
        labels = None if labels is None else _placed(labels, (side, side), top, left, 0)
        transform = transform.then((1.0, 1.0), (float(left), float(top)))
    if geometry.size is not None:
        height, width = image.shape[:2]
        transform = transform.then((geometry.size[1] / width, geometry.size[0] / height), (0.0, 0.0))
        image = resize_image(image, geometry.size)
        labels = None if labels is None else resize_mask(labels, geometry.size)
    if geometry.tile is None:
        yield Tile("", image, labels, transform)
        return
    (height, width), (rows, columns) = image.shape[:2], geometry.tile
    color = border_color(image)
    for row, top in enumerate(range(0, height, rows)):
        for column, left in enumerate(range(0, width, columns)):
            window = (slice(top, top + rows), slice(left, left + columns))
            yield Tile(
                f"_r{row:02d}_c{column:02d}",
                _placed(image[window], geometry.tile, 0, 0, color),
                None if labels is None else _placed(labels[window], geometry.tile, 0, 0, 0),
                transform.then((1.0, 1.0), (-float(left), -float(top))),
            )


def _placed(array: np.ndarray, shape: tuple[int, int], top: int, left: int, color: object) -> np.ndarray:
    """Places an image or label map on a canvas of one color."""
    canvas = np.empty((*shape, *array.shape[2:]), array.dtype)
    canvas[:] = np.round(np.asarray(color))
    canvas[top : top + array.shape[0], left : left + array.shape[1]] = array
    return canvas
