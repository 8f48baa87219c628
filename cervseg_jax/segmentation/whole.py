"""Whole nuclei from detections and the mask: the visible edge is the mask's, what is hidden is the detection's.

A detection keeps the pixels of the mask that it covers. Pixels of the mask that no detection covers go to the nearest
nucleus if they are close to it; larger remainders are divided by the watershed, as without detections.
"""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float

from cervseg_jax.extents import Extent, paint, trimmed
from cervseg_jax.heads import Head
from cervseg_jax.label_maps import bounding_boxes
from cervseg_jax.schema import PostprocessingConfig
from cervseg_jax.segmentation.instances import clean, label_instances
from cervseg_jax.segmentation.suppression import Detection
from cervseg_jax.typing import typechecked

MAX_GROWTH = 0.35
"""Uncovered pixels of the mask belong to a nucleus that is nearer than this share of its radius, or a pixel."""


class WholeNucleus(NamedTuple):
    """A nucleus at full extent."""

    extent: Extent
    source: int
    """Index of its detection; -1 for one that only the watershed found."""
    score: float
    """As of its detection; 0 without one."""
    agreement: float
    num_proposals: int


@typechecked
def whole_nuclei(
    maps: Float[np.ndarray, "h w maps"],
    mask: Bool[np.ndarray, "h w"],
    heads: Sequence[Head],
    params: PostprocessingConfig,
    detections: Sequence[Detection],
) -> list[WholeNucleus]:
    """Fits detections to the mask.

    Args:
      maps: probabilities of the heads, for the watershed.
      mask: pixels that belong to nuclei.
      heads: heads of `maps`.
      params: parameters of the watershed; smaller components and nuclei are dropped.
      detections: detected nuclei, within the image.

    Returns:
      The nuclei, in the order of the detections, then those of the watershed.
    """
    inside = clean(mask, min_area_px=params.min_area_px, max_hole_px=params.max_hole_px)
    found: list[tuple[int, Extent]] = []
    for source, detection in enumerate(detections):
        extent = _within(detection.extent, inside)
        if extent is not None and extent.area >= params.min_area_px:
            found.append((source, extent))
    owner = np.zeros(mask.shape, np.int32)
    paint({index: extent for index, (_, extent) in enumerate(found, start=1)}, owner)
    grown, rest = _grown([extent for _, extent in found], owner, inside, min_area_px=params.min_area_px)
    nuclei = [
        WholeNucleus(extent, source, *detections[source][1:]) for (source, _), extent in zip(found, grown, strict=True)
    ]
    labels = label_instances(maps, rest, heads, params) if rest.any() else np.zeros(mask.shape, np.int32)
    present = np.unique(labels[labels > 0])
    for label, (top, left, bottom, right) in zip(present, bounding_boxes(labels).tolist(), strict=True):
        nuclei.append(WholeNucleus(Extent(top, left, labels[top:bottom, left:right] == label), -1, 0.0, 0.0, 0))
    return nuclei


def _within(extent: Extent, inside: np.ndarray) -> Extent | None:
    """Returns the largest 4-connected part of a detection within the mask, without holes."""
    part = extent.inside & inside[extent.window]
    return _solid(part, extent.top, extent.left)


def _solid(part: np.ndarray, top: int, left: int) -> Extent | None:
    """Returns the largest 4-connected component with its holes filled; None if there is no pixel."""
    if not part.any():
        return None
    _, components, stats, _ = cv2.connectedComponentsWithStats(part.astype(np.uint8), connectivity=4)
    largest = components == 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
    padded = np.pad(largest, 1)
    _, outside, _, _ = cv2.connectedComponentsWithStats((~padded).astype(np.uint8), connectivity=8)
    return trimmed((outside != outside[0, 0])[1:-1, 1:-1], top=top, left=left)


def _grown(
    extents: Sequence[Extent], owner: np.ndarray, inside: np.ndarray, *, min_area_px: int
) -> tuple[list[Extent], np.ndarray]:
    """Gives uncovered pixels near nuclei, and those in pieces too small for a nucleus, to the nearest one.

    Returns:
      The nuclei, and the pixels of the mask that still belong to none, bool [h, w].
    """
    free = inside & (owner == 0)
    if not extents or not free.any():
        return list(extents), free
    reach = np.array([0.0, *(max(1.5, MAX_GROWTH * np.sqrt(extent.area / np.pi)) for extent in extents)])
    distance, nearest = cv2.distanceTransformWithLabels(
        (owner == 0).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    by_place = np.zeros(int(nearest.max()) + 1, np.int32)
    by_place[nearest[owner > 0]] = owner[owner > 0]
    close = free & (distance <= reach[by_place[nearest]])
    small = free & ~close
    small &= ~clean(small, min_area_px=min_area_px, max_hole_px=0)
    taken = np.where(close | small, by_place[nearest], 0)
    grown = list(extents)
    present = np.unique(taken[taken > 0])
    for index, (top, left, bottom, right) in zip(present.tolist(), bounding_boxes(taken).tolist(), strict=True):
        extent = extents[index - 1]
        (rows, columns), box = extent.window, (top, left, bottom, right)
        top, left = min(box[0], rows.start), min(box[1], columns.start)
        bottom, right = max(box[2], rows.stop), max(box[3], columns.stop)
        whole = taken[top:bottom, left:right] == index
        whole[extent.moved(-top, -left).window] |= extent.inside
        grown[index - 1] = _solid(whole, top, left) or extent
    covered = owner > 0
    for extent in grown:
        covered[extent.window] |= extent.inside
    return grown, inside & ~covered
