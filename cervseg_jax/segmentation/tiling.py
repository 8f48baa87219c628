"""Images of any size through a network of one size: tiles at constant scale, blended.

Tiles lie on a grid whose step is the tile's side less the overlap; what lies outside of the image is reflected in. Each
tile counts most in its middle and fades out over the overlap, and the weights of all tiles that cover a pixel add up to
one after division. Rows of the result come out as soon as they are complete, so that the memory depends on the width of
the image alone.
"""

from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np


class ImageLike(Protocol):
    """An image whose windows can be read: a numpy array, or a slide on disk."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Height, width and 3."""
        ...

    def __getitem__(self, window: tuple[slice, slice], /) -> np.ndarray:
        """Returns uint8 RGB of a window within the image."""
        ...


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """Returns where tiles begin along one side, so that they cover it and half an overlap beyond at both ends.

    Args:
      length: of the side in pixels.
      tile: side of a tile.
      overlap: pixels that neighbors share; less than the tile's side.

    Returns:
      Starts; negative ones begin outside.

    Example:
      >>> tile_starts(100, 64, 16)
      [-8, 40, 88]
    """
    step = tile - overlap
    return [number * step - overlap // 2 for number in range(-(-length // step))]


def fade(tile: int, overlap: int) -> np.ndarray:
    """Returns the weights along one side of a tile: rising over the overlap, 1, falling; float32 [tile].

    Neighbors' weights add up to 1.

    Example:
      >>> fade(8, 4).tolist()
      [0.125, 0.375, 0.625, 0.875, 0.875, 0.625, 0.375, 0.125]
    """
    ramp = (np.arange(tile) + 0.5) / max(overlap, 1)
    return np.minimum(1.0, np.minimum(ramp, ramp[::-1])).astype(np.float32) if overlap else np.ones(tile, np.float32)


def predict_tiled(
    predict: Callable[[np.ndarray], np.ndarray],
    image: ImageLike,
    *,
    tile_size: tuple[int, int],
    overlap_px: int,
    batch_size: int,
    on_progress: Callable[[], None] = lambda: None,
) -> Iterator[tuple[int, np.ndarray]]:
    """Streams an image through a network in tiles.

    Args:
      predict: from uint8 [batch_size, h, w, 3] to probabilities [batch_size, h, w, maps].
      image: of any size.
      tile_size: height and width of the network's input.
      overlap_px: pixels that neighboring tiles share.
      batch_size: rows of a batch; the last one is filled up.
      on_progress: called after each row of tiles.

    Yields:
      The number of the first row, and float32 probabilities [rows, image width, maps], from the top down.
    """
    (tile_h, tile_w), (height, width) = tile_size, image.shape[:2]
    peaks, lefts = (tile_starts(length, tile, overlap_px) for length, tile in ((height, tile_h), (width, tile_w)))
    weights = np.outer(fade(tile_h, overlap_px), fade(tile_w, overlap_px))[..., None]
    canvas_w = lefts[-1] + tile_w - lefts[0]
    total = sums = None
    emitted = 0
    for number, top in enumerate(peaks):
        band = _band(image, top, tile_h, lefts[0], canvas_w)
        for first in range(0, len(lefts), batch_size):
            places = [left - lefts[0] for left in lefts[first : first + batch_size]]
            tiles = np.stack([band[:, place : place + tile_w] for place in places])
            filled = np.concatenate([tiles, np.repeat(tiles[:1], batch_size - len(tiles), axis=0)])
            for place, probs in zip(places, predict(filled), strict=False):
                if total is None or sums is None:
                    total = np.zeros((tile_h, canvas_w, probs.shape[-1]), np.float32)
                    sums = np.zeros((tile_h, canvas_w, 1), np.float32)
                total[:, place : place + tile_w] += weights * probs
                sums[:, place : place + tile_w] += weights
        assert total is not None and sums is not None  # noqa: S101 (every row has a tile)
        is_last = number == len(peaks) - 1
        complete = min(height, top + tile_h if is_last else peaks[number + 1]) - emitted
        skip = emitted - top
        rows = np.s_[skip : skip + complete, -lefts[0] : -lefts[0] + width]
        yield emitted, total[rows] / sums[rows]
        emitted += complete
        on_progress()
        if not is_last:
            step = peaks[number + 1] - top
            for buffer in (total, sums):
                buffer[: tile_h - step] = buffer[step:].copy()
                buffer[tile_h - step :] = 0


def _band(image: ImageLike, top: int, height: int, left: int, width: int) -> np.ndarray:
    """Reads a window that may reach beyond the image, reflected at the borders."""
    rows, columns = (
        _reflected(start, count, length)
        for start, count, length in ((top, height, image.shape[0]), (left, width, image.shape[1]))
    )
    window = image[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    return np.asarray(window)[np.ix_(rows - rows.min(), columns - columns.min())]


def _reflected(start: int, count: int, length: int) -> np.ndarray:
    """Positions within [0, length) for those of a window, mirrored at the outermost pixels."""
    period = max(1, 2 * (length - 1))
    places = np.abs(np.arange(start, start + count)) % period
    return np.minimum(places, period - places) if length > 1 else np.zeros(count, int)
