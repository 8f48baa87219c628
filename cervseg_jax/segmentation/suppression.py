"""Non-maximum suppression of outlines: one outline per nucleus, from all that are proposed.

The order of the candidates changes nothing: among equal scores the one whose pixel comes first goes first.

Reference: Schmidt et al. 2018, arXiv:1806.03535, section 2.2; the outline is then the one that most of the proposals
agree on, which is closer to the truth than the best one alone.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cervseg_jax.annotations.outlines import rasterize
from cervseg_jax.extents import BoxIndex, Extent, shared_pixels, trimmed
from cervseg_jax.segmentation.candidates import Candidates

MIN_AGREEMENT = 0.5
"""IoU with the best proposal from which another one counts for the outline."""


class Detection(NamedTuple):
    """A nucleus that proposals agree on."""

    extent: Extent
    score: float
    """Largest centrality of its proposals, in [0, 1]."""
    agreement: float
    """Mean IoU of its proposals with the best one, in [0, 1]; 0 where there is one alone."""
    num_proposals: int


class Proposals:
    """Proposed outlines of an image as pixels, the surest first; it remembers which of them overlap."""

    def __init__(self, candidates: Candidates, *, shape: tuple[int, int], min_score: float = 0.0) -> None:
        """Draws the outlines.

        Args:
          candidates: proposals in any order.
          shape: height and width of the image; outlines are cut off at its edges.
          min_score: proposals of a lower score are left out.
        """
        rows, columns = candidates.pixels.T
        order = np.lexsort((columns, rows, -candidates.scores.astype(np.float64)))
        order = order[candidates.scores[order] >= min_score]
        windows = (rasterize([corners], shape=shape) for corners in candidates.corners[order])
        drawn = [trimmed(inside, top=top, left=left) for top, left, inside in windows]
        self.extents = [extent for extent in drawn if extent is not None]
        self.scores = candidates.scores[order[[extent is not None for extent in drawn]]]
        self._index = BoxIndex(self.extents)
        self._known: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def overlapping(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the indices of the other proposals that share pixels with one, and their IoU with it."""
        if index not in self._known:
            own = self.extents[index]
            near = self._index.near(own)
            near = near[near != index]
            shared = np.array([shared_pixels(own, self.extents[other]) for other in near], np.int64).reshape(-1)
            areas = np.array([self.extents[other].area for other in near], np.int64).reshape(-1)
            self._known[index] = near[shared > 0], (shared / (own.area + areas - shared))[shared > 0]
        return self._known[index]


def suppress(proposals: Proposals, *, min_score: float, max_iou: float) -> list[Detection]:
    """Chooses the best proposals, in descending order of the score.

    Args:
      proposals: outlines.
      min_score: proposals of a lower score are not considered.
      max_iou: of two proposals that overlap more than this one belongs to the other's nucleus.

    Returns:
      The nuclei, the surest first. The best proposals of any two of them overlap up to `max_iou`.
    """
    is_free = proposals.scores >= min_score
    detections = []
    for index in range(len(proposals.extents)):
        if not is_free[index]:
            continue
        others, iou = proposals.overlapping(index)
        others, iou = others[is_free[others]], iou[is_free[others]]
        is_free[index] = False
        is_free[others[iou > max_iou]] = False
        agreeing = iou > max(MIN_AGREEMENT, max_iou)
        members = [index, *others[agreeing].tolist()]
        detections.append(
            Detection(
                _consensus([proposals.extents[member] for member in members], proposals.scores[members]),
                float(proposals.scores[index]),
                float(iou[agreeing].mean()) if agreeing.any() else 0.0,
                len(members),
            )
        )
    return detections


def _consensus(extents: Sequence[Extent], weights: np.ndarray) -> Extent:
    """Returns the pixels that lie in at least half of the proposals, by weight."""
    if len(extents) == 1:
        return extents[0]
    top, left = min(extent.top for extent in extents), min(extent.left for extent in extents)
    bottom = max(extent.top + extent.inside.shape[0] for extent in extents)
    right = max(extent.left + extent.inside.shape[1] for extent in extents)
    votes = np.zeros((bottom - top, right - left))
    for extent, weight in zip(extents, weights, strict=True):
        votes[extent.moved(-top, -left).window] += weight * extent.inside
    agreed = trimmed(votes >= weights.sum() / 2, top=top, left=left)
    return extents[0] if agreed is None else agreed
