"""Tiled prediction: images of any size through a network of one size, at constant scale, with blended overlaps.

Tiles lie on a grid whose step is the tile's side minus the overlap; the image is padded by reflection. Each tile's
weight is 1 in its middle and falls linearly over the overlap; the weighted sum is divided by the sum of weights. Rows
are yielded as soon as they are complete, so memory grows with the image's width only.
"""

from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Float32, UInt8

from cervseg_jax.segmentation.images import ImageLike
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


def predict_tiled(
    predict: Callable[[UInt8[np.ndarray, "b h w 3"]], Float32[np.ndarray, "b h w maps"]],
    image: ImageLike,
    *,
    tile_size: tuple[int, int],
    overlap_px: int,
    batch_size: int,
    tile_rows: range | None = None,
    on_progress: Callable[[], None] = lambda: None,
) -> Iterator[tuple[int, Float32[np.ndarray, "rows width maps"]]]:
    """Predicts an image in tiles, from the top down.

    A part of the rows of tiles gives the same values as all of them: the rows above that reach into it are predicted
    as well, and added in the same order.

    Args:
      predict: from `batch_size` images to probabilities.
      image: of any size.
      tile_size: height and width of the network's input.
      overlap_px: pixels that neighboring tiles share.
      batch_size: tiles per call of `predict`; the last batch of a row is padded.
      tile_rows: consecutive rows of tiles whose pixels are wanted, of `num_tile_rows`; None: all.
      on_progress: called after each row of tiles.

    Yields:
      The index of the first row, and the probabilities of the rows, for each row of tiles.
    """
    (tile_h, tile_w), (height, width) = tile_size, image.shape[:2]
    tops, lefts = (tile_starts(length, tile, overlap_px) for length, tile in ((height, tile_h), (width, tile_w)))
    weights = np.outer(fade(tile_h, overlap_px), fade(tile_w, overlap_px))[..., None]
    canvas_w = lefts[-1] + tile_w - lefts[0]
    total = sums = None
    tile_rows = range(len(tops)) if tile_rows is None else tile_rows
    emitted = max(0, tops[tile_rows.start])
    first_row = next(index for index, top in enumerate(tops) if top + tile_h > tops[tile_rows.start])
    for index, top in enumerate(tops[: tile_rows.stop][first_row:], start=first_row):
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
        is_last = index == len(tops) - 1
        if index in tile_rows:
            complete = max(0, min(height, top + tile_h if is_last else tops[index + 1])) - emitted
            skip = emitted - top
            rows = np.s_[skip : skip + complete, -lefts[0] : -lefts[0] + width]
            yield emitted, total[rows] / sums[rows]
            emitted += complete
        on_progress()
        if not is_last:
            step = tops[index + 1] - top
            for buffer in (total, sums):
                buffer[: tile_h - step] = buffer[step:].copy()
                buffer[tile_h - step :] = 0


def _band(image: ImageLike, top: int, height: int, left: int, width: int) -> np.ndarray:
    """Reads a window, uint8 [height, width, 3]; beyond the image it is padded by reflection."""
    rows, columns = (
        _reflected(start, count, length)
        for start, count, length in ((top, height, image.shape[0]), (left, width, image.shape[1]))
    )
    window = image[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    return np.asarray(window)[np.ix_(rows - rows.min(), columns - columns.min())]


def _reflected(start: int, count: int, length: int) -> np.ndarray:
    """Returns the indices in [0, length) of `count` positions from `start`, reflected at the outermost pixels."""
    period = max(1, 2 * (length - 1))
    places = np.abs(np.arange(start, start + count)) % period
    return np.minimum(places, period - places) if length > 1 else np.zeros(count, int)
