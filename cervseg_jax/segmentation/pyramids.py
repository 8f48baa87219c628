"""Label maps and probabilities as pyramids: tiled OME-TIFF files (BigTIFF) for viewers such as QuPath and napari.

Each level has half the size of the one above it, up to a level of one tile. Levels are sub-directories of the first, as
OME-TIFF 6 says. The same content gives the same bytes: there are no times, and identifiers follow from the name.
"""

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cervseg_jax.files import atomic_path
from cervseg_jax.segmentation.maps import allocate

TILE_PX = 512
BAND_ROWS = 2 * TILE_PX
"""Rows that are held at a time; even, so that levels can be reduced band by band."""
PROBABILITY_LEVELS = 65535
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "cervseg-jax/pyramids")


class _Level(NamedTuple):
    shape: tuple[int, int]
    read: Callable[[slice], np.ndarray]
    """From rows to their values [rows, w]."""


def write_label_pyramid(
    path: Path, labels: np.ndarray, *, mpp: float | None = None, scratch: Path | None = None
) -> None:
    """Writes a label map; coarser levels take every second pixel.

    Args:
      path: the file, `NAME.ome.tif`.
      labels: integers [h, w]; may be memory-mapped. The file has 16 bits, or 32 where that is too little.
      mpp: micrometers per pixel; None: unknown.
      scratch: folder for temporary files of large levels; None: the system's.

    Raises:
      ImportError: if the extra `slides` is not installed.
      OSError: if the file cannot be written.
    """
    dtype = np.dtype(np.uint16 if labels.max(initial=0) <= np.iinfo(np.uint16).max else np.int32)
    first = _Level(_size(labels), lambda rows: np.asarray(labels[rows]).astype(dtype))
    _write(path, _reduced(first, dtype, lambda band: band[::2, ::2], scratch), dtype, mpp=mpp)


def write_probability_pyramid(
    path: Path, probs: np.ndarray, *, mpp: float | None = None, scratch: Path | None = None
) -> None:
    """Writes probabilities in [0, 1] times `PROBABILITY_LEVELS`, rounded; coarser levels are means of four pixels.

    Args:
      path: the file, `NAME.ome.tif`.
      probs: floating-point values [h, w]; may be memory-mapped.
      mpp: as of `write_label_pyramid`.
      scratch: as of `write_label_pyramid`.

    Raises:
      ImportError: if the extra `slides` is not installed.
      OSError: if the file cannot be written.
    """
    dtype = np.dtype(np.uint16)

    def read(rows: slice) -> np.ndarray:
        return np.round(np.asarray(probs[rows]).astype(np.float32) * PROBABILITY_LEVELS).astype(dtype)

    _write(path, _reduced(_Level(_size(probs), read), dtype, _mean_of_four, scratch), dtype, mpp=mpp)


def _size(values: np.ndarray) -> tuple[int, int]:
    height, width = values.shape
    return height, width


def _reduced(
    first: _Level, dtype: np.dtype, reduce: Callable[[np.ndarray], np.ndarray], scratch: Path | None
) -> list[_Level]:
    """Returns all levels; each is computed from the one before, band by band."""
    levels = [first]
    while max(levels[-1].shape) > TILE_PX:
        (height, width), read = levels[-1]
        smaller = allocate((-(-height // 2), -(-width // 2)), dtype, scratch)
        for top in range(0, height, BAND_ROWS):
            band = reduce(read(slice(top, min(top + BAND_ROWS, height))))
            smaller[top // 2 : top // 2 + len(band)] = band
        levels.append(_Level(_size(smaller), smaller.__getitem__))
    return levels


def _mean_of_four(band: np.ndarray) -> np.ndarray:
    """Returns the rounded means of squares of 2x2; the last row or column is repeated where a side is odd."""
    even = np.pad(band, ((0, band.shape[0] % 2), (0, band.shape[1] % 2)), mode="edge").astype(np.uint32)
    sums = even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2]
    return ((sums + 2) // 4).astype(band.dtype)


def _write(path: Path, levels: list[_Level], dtype: np.dtype, *, mpp: float | None) -> None:
    from tifffile import TiffWriter  # pyright: ignore[reportMissingImports]

    name = path.name.removesuffix(".ome.tif")
    about: dict[str, Any] = {
        "axes": "YX",
        "Name": name,
        "Creator": "cervseg-jax",
        "UUID": str(uuid.uuid5(_NAMESPACE, f"{path.parent.name}/{name}")),
    }
    if mpp is not None:
        about |= {f"PhysicalSize{axis}{key}": value for axis in "XY" for key, value in (("", mpp), ("Unit", "µm"))}
    options: dict[str, Any] = {
        "dtype": dtype,
        "tile": (TILE_PX, TILE_PX),
        "compression": "zlib",
        "photometric": "minisblack",
        "resolutionunit": "NONE" if mpp is None else "CENTIMETER",
    }
    with atomic_path(path) as temporary, TiffWriter(temporary, bigtiff=True, ome=True) as file:
        for index, level in enumerate(levels):
            pixels_per_cm = (1.0, 1.0) if mpp is None else (1e4 / (mpp * 2**index),) * 2
            of_level = (
                {"subfiletype": 1, "metadata": None} if index else {"subifds": len(levels) - 1, "metadata": about}
            )
            file.write(_tiles(level, dtype), shape=level.shape, resolution=pixels_per_cm, **of_level, **options)


def _tiles(level: _Level, dtype: np.dtype) -> Iterator[np.ndarray]:
    """Yields the tiles of a level in reading order, padded with zeros."""
    height, width = level.shape
    for top in range(0, height, TILE_PX):
        band = level.read(slice(top, min(top + TILE_PX, height)))
        for left in range(0, width, TILE_PX):
            tile = np.zeros((TILE_PX, TILE_PX), dtype)
            part = band[:, left : left + TILE_PX]
            tile[: part.shape[0], : part.shape[1]] = part
            yield tile
