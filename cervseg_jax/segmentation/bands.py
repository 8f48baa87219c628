"""Bands of a slide's probabilities on disk, which several processes predict, and which outlive a killed one.

Nobody waits for anybody: each process predicts its part of the bands from the top down, and the process that finishes
the slide predicts those that are still missing, from the end up. A band that two processes predict at the same time is
written twice with the same values.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from cervseg_jax.files import make_folder, write_bytes

BAND_TILE_ROWS = 8
"""Rows of tiles in a band. Where a process begins, the row above is predicted a second time."""
_TYPE = np.dtype(np.float16)

PredictRows = Callable[[range], Iterable[tuple[int, np.ndarray]]]
"""From consecutive rows of tiles to first pixel row and probabilities [rows, w, maps] of each, see `predict_tiled`."""


class Bands:
    """The bands of one slide, in a folder of their own."""

    def __init__(self, folder: Path, stamp: Sequence[str], *, is_wanted: Callable[[], bool] = lambda: True) -> None:
        """Names the folder; nothing is read or written yet.

        Args:
          folder: the folder.
          stamp: size and time of the slide's file; bands of another version are not seen.
          is_wanted: whether the slide is still to be done; it may become complete before all parts are.
        """
        self._folder = folder
        self._stamp = "-".join(stamp)
        self._is_wanted = is_wanted

    def predict_part(self, predict_rows: PredictRows, num_tile_rows: int, *, part: int, num_parts: int) -> None:
        """Predicts the missing bands of one of several equal parts.

        Args:
          predict_rows: the prediction.
          num_tile_rows: rows of tiles of the slide.
          part: index of the part.
          num_parts: number of parts.

        Raises:
          OSError: if a band cannot be written.
        """
        count = num_bands(num_tile_rows)
        own = range(part * count // num_parts, (part + 1) * count // num_parts)
        for index in own:
            if self._is_missing(index):
                self._predict_from(index, own.stop, predict_rows, num_tile_rows)

    def complete(self, predict_rows: PredictRows, num_tile_rows: int, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
        """Predicts what is missing and reads all.

        Args:
          predict_rows: the prediction.
          num_tile_rows: rows of tiles of the slide.
          shape: shape of the slide's probabilities, [h, w, maps].

        Yields:
          Probabilities [rows, w, maps] of each band, float16, from the top down.

        Raises:
          OSError: if a band cannot be written or read.
        """
        count = num_bands(num_tile_rows)
        for index in reversed(range(count)):
            if not self._path(index).exists():
                self._predict_from(index, index + 1, predict_rows, num_tile_rows)
        for index in range(count):
            yield np.frombuffer(self._path(index).read_bytes(), _TYPE).reshape(-1, *shape[1:])

    def _predict_from(self, first: int, stop: int, predict_rows: PredictRows, num_tile_rows: int) -> None:
        """Predicts bands from `first` on, up to `stop` or one that another process has written meanwhile."""
        rows = range(first * BAND_TILE_ROWS, min(stop * BAND_TILE_ROWS, num_tile_rows))
        held, index = [], first
        for tile_row, (_, values) in zip(rows, predict_rows(rows), strict=True):
            held.append(values.astype(_TYPE))
            if tile_row + 1 == rows.stop or (tile_row + 1) % BAND_TILE_ROWS == 0:
                write_bytes(make_folder(self._folder) / self._path(index).name, np.concatenate(held).tobytes())
                held, index = [], index + 1
                if index < stop and not self._is_missing(index):
                    return

    def _is_missing(self, index: int) -> bool:
        return self._is_wanted() and not self._path(index).exists()

    def _path(self, index: int) -> Path:
        return self._folder / f"{index}-{self._stamp}.band"


def num_bands(num_tile_rows: int) -> int:
    """Returns the number of bands of a slide."""
    return math.ceil(num_tile_rows / BAND_TILE_ROWS)
