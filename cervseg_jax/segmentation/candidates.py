"""Outlines that the head "rays" proposes: one for each central pixel, on a grid.

The rays of a large image would fill a disk; of each band of rows that is predicted, only the proposals are kept.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from cervseg_jax.data.rays import decode_lengths, directions
from cervseg_jax.heads import NUM_RAYS, Head, channels

MIN_CENTRALITY = 0.25
"""Pixels that are less central propose nothing."""
GRID_PX = 2
"""Distance of the pixels that propose outlines, in pixels of the network's input; at least one of the image."""


class Candidates(NamedTuple):
    """Proposed outlines of an image, in reading order of their pixels."""

    pixels: np.ndarray
    """int64 [n, 2]: row and column."""
    scores: np.ndarray
    """float32 [n]: predicted centrality in [0, 1]."""
    corners: np.ndarray
    """float32 [n, rays, 2]: x and y of the outline's corners in the image, where pixel centers have halves."""


class Prediction(NamedTuple):
    """What a network predicts of an image."""

    maps: np.ndarray
    """Probabilities [h, w, maps] of all heads but "rays"."""
    candidates: Candidates | None = None
    """For networks with the head "rays"."""


def dense_heads(heads: Sequence[Head]) -> tuple[Head, ...]:
    """Returns the heads whose maps are kept whole: all but "rays", which is the last where it is there."""
    return tuple(head for head in heads if head != "rays")


class CandidateCollector:
    """Collects proposals from rows of maps, which come in order."""

    def __init__(self, heads: Sequence[Head], *, stretch: tuple[float, float] = (1.0, 1.0)) -> None:
        """Starts empty.

        Args:
          heads: heads of the network.
          stretch: size of a pixel of the network's input in pixels of the image, down and across.
        """
        self._span = channels(heads, "rays") if "rays" in heads else None
        self._stretch = np.array(stretch)
        self._step = max(1, round(GRID_PX * float(np.sqrt(stretch[0] * stretch[1]))))
        self._found: list[Candidates] = []

    def add(self, first_row: int, rows: Float[np.ndarray, "rows w maps"]) -> Float[np.ndarray, "rows w dense"]:
        """Takes the proposals of some rows, and returns the maps of the other heads.

        Args:
          first_row: index of the first row in the image.
          rows: probabilities of all heads.
        """
        if self._span is None:
            return rows
        start = -first_row % self._step
        grid = np.asarray(rows[start :: self._step, :: self._step, self._span])
        at = np.argwhere(grid[..., 0] >= MIN_CENTRALITY)
        values = grid[at[:, 0], at[:, 1]].astype(np.float32)
        pixels = at * self._step + (first_row + start, 0)
        steps = directions() * self._stretch
        offsets = decode_lengths(values[:, 1:])[..., None] * steps
        corners = (pixels[:, None] + 0.5 + offsets)[..., ::-1]
        self._found.append(Candidates(pixels, values[:, 0], corners.astype(np.float32)))
        return rows[..., : self._span.start]

    def result(self) -> Candidates | None:
        """Returns all proposals; None for networks without the head."""
        if self._span is None:
            return None
        none = Candidates(np.zeros((0, 2), np.int64), np.zeros(0, np.float32), np.zeros((0, NUM_RAYS, 2), np.float32))
        return Candidates(*(np.concatenate(fields) for fields in zip(none, *self._found, strict=True)))


def split_prediction(maps: np.ndarray, heads: Sequence[Head], *, image_size: tuple[int, int]) -> Prediction:
    """Parts the maps of an image that was resized to the network's input and back.

    Args:
      maps: probabilities [h, w, maps] of all heads, in the image's size.
      heads: heads of the network.
      image_size: height and width of the network's input.
    """
    collector = CandidateCollector(heads, stretch=(maps.shape[0] / image_size[0], maps.shape[1] / image_size[1]))
    return Prediction(collector.add(0, maps), collector.result())
