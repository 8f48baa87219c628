"""Tiled prediction: images of any size through a network of one size, at constant scale, with blended overlaps.

Tiles lie on a grid whose step is the tile's side minus the overlap; the image is padded by reflection. Each tile's
weight is 1 in its middle and falls linearly over the overlap; the weighted sum is divided by the sum of weights. Rows
are yielded as soon as they are complete, so memory grows with the image's width only.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float32

from cervseg_jax.segmentation.images import ImageLike
from cervseg_jax.segmentation.predict import Predictor, predict_ahead
from cervseg_jax.typing import typechecked


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """Returns the offsets of the tiles along one axis. They cover it, and half an overlap beyond both ends.

    Args:
      length: length of the axis in pixels.
      tile: tile length in pixels.
      overlap: pixels that neighboring tiles share; less than `tile`.

    Returns:
      Offsets in pixels; the first is negative or 0.

    Example:
      >>> tile_starts(100, 64, 16)
      [-8, 40, 88]
    """
    step = tile - overlap
    return [index * step - overlap // 2 for index in range(-(-length // step))]


def num_tile_rows(height: int, tile_height: int, overlap_px: int) -> int:
    """Returns the number of rows of tiles of an image, see `tile_starts`."""
    return len(tile_starts(height, tile_height, overlap_px))


@typechecked
def fade(tile: int, overlap: int) -> Float32[np.ndarray, " tile"]:
    """Returns the blending weights along one axis of a tile: a ramp over the overlap, 1, a ramp down.

    The weights of neighboring tiles add up to 1.

    Example:
      >>> fade(8, 4).tolist()
      [0.125, 0.375, 0.625, 0.875, 0.875, 0.625, 0.375, 0.125]
    """
    ramp = (np.arange(tile) + 0.5) / max(overlap, 1)
    return np.minimum(1.0, np.minimum(ramp, ramp[::-1])).astype(np.float32) if overlap else np.ones(tile, np.float32)


class _Grid(NamedTuple):
    """The tiles of an image."""

    tops: list[int]
    lefts: list[int]
    height: int
    """Of a tile."""
    width: int

    @property
    def canvas_width(self) -> int:
        """Width of a row of tiles."""
        return self.lefts[-1] + self.width - self.lefts[0]


def predict_tiled(
    predictor: Predictor,
    image: ImageLike,
    *,
    overlap_px: int,
    tile_rows: range | None = None,
    on_progress: Callable[[], None] = lambda: None,
) -> Iterator[tuple[int, Float32[np.ndarray, "rows width maps"]]]:
    """Predicts an image in tiles, from the top down.

    Tiles are read and blended while others are predicted. A part of the rows of tiles gives the same values as all of
    them: the rows above that reach into it are predicted as well, in the same batches, and added in the same order.

    Args:
      predictor: the prediction function; its images are the tiles.
      image: of any size.
      overlap_px: pixels that neighboring tiles share.
      tile_rows: consecutive rows of tiles whose pixels are wanted, of `num_tile_rows`; None: all.
      on_progress: called after each row of tiles.

    Yields:
      The index of the first row, and the probabilities of the rows, for each row of tiles.
    """
    (tile_h, tile_w), (height, width) = predictor.image_size, image.shape[:2]
    grid = _Grid(tile_starts(height, tile_h, overlap_px), tile_starts(width, tile_w, overlap_px), tile_h, tile_w)
    tops, left_end = grid.tops, -grid.lefts[0]
    weights = np.outer(fade(tile_h, overlap_px), fade(tile_w, overlap_px))[..., None]
    total = sums = None
    tile_rows = range(len(tops)) if tile_rows is None else tile_rows
    emitted = max(0, tops[tile_rows.start])
    first_row = next(index for index, top in enumerate(tops) if top + tile_h > tops[tile_rows.start])
    batches = _batches(image, grid, range(first_row, tile_rows.stop), predictor.batch_size)
    for index, tiles in _rows(predict_ahead(predictor, batches), first_row):
        for place, probs in tiles:
            if total is None or sums is None:
                total = np.zeros((tile_h, grid.canvas_width, probs.shape[-1]), np.float32)
                sums = np.zeros((tile_h, grid.canvas_width, 1), np.float32)
            total[:, place : place + tile_w] += weights * probs
            sums[:, place : place + tile_w] += weights
        assert total is not None and sums is not None  # noqa: S101 (every row has a tile)
        is_last = index == len(tops) - 1
        if index in tile_rows:
            complete = max(0, min(height, tops[index] + tile_h if is_last else tops[index + 1])) - emitted
            skip = emitted - tops[index]
            rows = np.s_[skip : skip + complete, left_end : left_end + width]
            yield emitted, total[rows] / sums[rows]
            emitted += complete
        on_progress()
        if not is_last:
            step = tops[index + 1] - tops[index]
            for buffer in (total, sums):
                buffer[: tile_h - step] = buffer[step:].copy()
                buffer[tile_h - step :] = 0


_Place = tuple[int, int]
"""A tile's row, and its first column in the row of tiles."""


def _batches(
    image: ImageLike, grid: _Grid, tile_rows: range, batch_size: int
) -> Iterator[tuple[list[_Place], np.ndarray]]:
    """Yields the tiles of some rows in batches; short rows share a batch, and always the same rows do."""
    rows_at_once = max(1, batch_size // len(grid.lefts))
    for first in range(tile_rows.start - tile_rows.start % rows_at_once, tile_rows.stop, rows_at_once):
        rows = range(first, min(first + rows_at_once, tile_rows.stop))
        bands = [_band(image, grid.tops[row], grid.height, grid.lefts[0], grid.canvas_width) for row in rows]
        places = [(row, left - grid.lefts[0]) for row in rows for left in grid.lefts]
        for start in range(0, len(places), batch_size):
            chosen = places[start : start + batch_size]
            yield chosen, np.stack([bands[row - first][:, left : left + grid.width] for row, left in chosen])


def _rows(
    batches: Iterable[tuple[list[_Place], np.ndarray]], first_row: int
) -> Iterator[tuple[int, Iterator[tuple[int, np.ndarray]]]]:
    """Yields the index of each row of tiles from `first_row` on, with first columns and probabilities of its tiles."""
    tiles = (tile for places, maps in batches for tile in zip(places, maps, strict=True))
    for row, group in itertools.groupby(tiles, lambda tile: tile[0][0]):
        if row >= first_row:
            yield row, ((place[1], probs) for place, probs in group)


def _band(image: ImageLike, top: int, height: int, left: int, width: int) -> np.ndarray:
    """Reads a window, uint8 [height, width, 3]; beyond the image it is padded by reflection."""
    rows, columns = (
        _reflected(start, count, length)
        for start, count, length in ((top, height, image.shape[0]), (left, width, image.shape[1]))
    )
    window = np.asarray(image[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1])
    above, below = max(0, -top), max(0, top + height - image.shape[0])
    before, after = max(0, -left), max(0, left + width - image.shape[1])
    padded = np.asarray(cv2.copyMakeBorder(window, above, below, before, after, cv2.BORDER_REFLECT_101))
    first_row, first_column = top - rows.min() + above, left - columns.min() + before
    return padded[first_row : first_row + height, first_column : first_column + width]


def _reflected(start: int, count: int, length: int) -> np.ndarray:
    """Returns the indices in [0, length) of `count` positions from `start`, reflected at the outermost pixels."""
    period = max(1, 2 * (length - 1))
    places = np.abs(np.arange(start, start + count)) % period
    return np.minimum(places, period - places) if length > 1 else np.zeros(count, int)
