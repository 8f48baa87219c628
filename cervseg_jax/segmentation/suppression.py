"""Non-maximum suppression of outlines: one outline per nucleus, from all that are proposed.

The order of the candidates changes nothing: among equal scores the one whose pixel comes first goes first.

Reference: Schmidt et al. 2018, arXiv:1806.03535, section 2.2; the outline is then the one that most of the proposals
agree on, which is closer to the truth than the best one alone.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cervseg_jax.annotations.outlines import rasterize
from cervseg_jax.extents import Extent, near_pairs, shared_pixels, trimmed
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


def rasterized(candidates: Candidates, shape: tuple[int, int]) -> list[Extent | None]:
    """Returns the pixels of each proposal within the image; None for those that cover none."""
    extents: list[Extent | None] = []
    for corners in candidates.corners:
        top, left, inside = rasterize([corners], shape=shape)
        extents.append(trimmed(inside, top=top, left=left))
    return extents


def suppress(candidates: Candidates, *, min_score: float, max_iou: float, shape: tuple[int, int]) -> list[Detection]:
    """Chooses the best proposals, in descending order of the score.

    Args:
      candidates: proposals in any order.
      min_score: proposals of a lower score are not considered.
      max_iou: of two proposals that overlap more than this one belongs to the other's nucleus.
      shape: height and width of the image; outlines are cut off at its edges.

    Returns:
      The nuclei, the surest first. Any two of them may overlap up to `max_iou`.
    """
    order = np.lexsort((candidates.pixels[:, 1], candidates.pixels[:, 0], -candidates.scores.astype(np.float64)))
    order = order[candidates.scores[order] >= min_score]
    chosen = Candidates(*(field[order] for field in candidates))
    drawn = rasterized(chosen, shape)
    kept = [index for index, extent in enumerate(drawn) if extent is not None]
    extents = [extent for extent in drawn if extent is not None]
    scores = chosen.scores[kept]
    areas = np.array([extent.area for extent in extents], np.int64)
    rows, columns = near_pairs(extents, extents)
    starts = np.searchsorted(rows, np.arange(len(extents) + 1))
    is_free = np.ones(len(extents), bool)
    detections = []
    for index in range(len(extents)):
        if not is_free[index]:
            continue
        near = columns[starts[index] : starts[index + 1]]
        near = near[is_free[near] & (near != index)]
        shared = np.array([shared_pixels(extents[index], extents[other]) for other in near], np.int64).reshape(-1)
        iou = shared / (areas[index] + areas[near] - shared)
        is_free[index] = False
        is_free[near[iou > max_iou]] = False
        agreeing = iou >= MIN_AGREEMENT
        members = [extents[index], *(extents[other] for other in near[agreeing])]
        weights = np.concatenate([scores[[index]], scores[near[agreeing]]])
        detections.append(
            Detection(
                _consensus(members, weights),
                float(scores[index]),
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
