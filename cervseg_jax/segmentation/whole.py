"""Whole nuclei: the watershed parts the mask, and detections add what other nuclei hide.

Each part of the mask is a nucleus, whose seen edge is that of the mask. The detection that lies in it adds the pixels
that it covers in other parts, where it says that much is hidden. A part becomes several nuclei where several detections
explain it better than one. So nuclei that only touch are parted as without detections.
"""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float

from cervseg_jax.extents import Extent, extents_of, shared_pixels, trimmed
from cervseg_jax.heads import Head
from cervseg_jax.schema import PostprocessingConfig
from cervseg_jax.segmentation.instances import label_instances
from cervseg_jax.segmentation.suppression import Detection
from cervseg_jax.typing import typechecked

MIN_HIDDEN = 0.1
"""Share of a detection that lies in other parts from which it is hidden, and not merely drawn a little too large."""
MIN_FIT = 0.5
"""Share of a part that its detection must cover to add anything to it."""
MIN_NEW = 0.35
"""Share of a part that a further detection must explain alone to be a nucleus of its own."""
MIN_PROPOSALS, MIN_AGREEMENT = 8, 0.75
"""Proposals that a further detection must have, and their mean IoU with the best one."""


class WholeNucleus(NamedTuple):
    """A nucleus at full extent."""

    extent: Extent
    seen: Extent
    """The pixels at which it lies on top, or may do so: its part of the mask. No two nuclei share any."""
    score: float = 0.0
    """As of its detection; 0 for one that only the watershed found, as for the rest."""
    agreement: float = 0.0
    num_proposals: int = 0


@typechecked
def whole_nuclei(
    maps: Float[np.ndarray, "h w maps"],
    mask: Bool[np.ndarray, "h w"],
    heads: Sequence[Head],
    params: PostprocessingConfig,
    detections: Sequence[Detection],
) -> list[WholeNucleus]:
    """Parts the mask and adds what is hidden.

    Args:
      maps: probabilities of the heads, for the watershed.
      mask: pixels that belong to nuclei.
      heads: heads of `maps`.
      params: parameters of the watershed.
      detections: detected nuclei within the image, the surest first.

    Returns:
      The nuclei, in the order of their parts. Together they cover what the watershed labels.
    """
    labels = label_instances(maps, mask, heads, params)
    parts = extents_of(labels)
    own: dict[int, list[Detection]] = {label: [] for label in parts}
    for detection in detections:
        covered = labels[detection.extent.window][detection.extent.inside]
        if covered.any():
            own[int(np.bincount(covered[covered > 0]).argmax())].append(detection)
    nuclei: list[WholeNucleus] = []
    for label, part in parts.items():
        chosen = _chosen(own[label], part)
        if len(chosen) < 2:
            nuclei.append(_completed(part, label, labels, chosen[0]) if chosen else WholeNucleus(part, part))
        else:
            nuclei += _divided(part, labels, chosen)
    return nuclei


def _chosen(detections: Sequence[Detection], part: Extent) -> list[Detection]:
    """Returns the detections that explain a part: the surest, and those that explain enough of the rest."""
    chosen = list(detections[:1])
    unexplained = _without(part.inside, part, detections[0].extent) if detections else part.inside
    for detection in detections[1:]:
        rest = _without(unexplained, part, detection.extent)
        num_new = np.count_nonzero(unexplained) - np.count_nonzero(rest)
        is_sure = detection.num_proposals >= MIN_PROPOSALS and detection.agreement >= MIN_AGREEMENT
        if is_sure and num_new >= MIN_NEW * part.area:
            chosen.append(detection)
            unexplained = rest
    return chosen


def _without(inside: np.ndarray, part: Extent, other: Extent) -> np.ndarray:
    """Returns the pixels in the box of a part that do not lie in another extent."""
    top, left = max(part.top, other.top), max(part.left, other.left)
    bottom, right = min(part.window[0].stop, other.window[0].stop), min(part.window[1].stop, other.window[1].stop)
    rest = inside.copy()
    if bottom > top and right > left:
        its = other.inside[top - other.top : bottom - other.top, left - other.left : right - other.left]
        rest[top - part.top : bottom - part.top, left - part.left : right - part.left] &= ~its
    return rest


def _completed(part: Extent, label: int, labels: np.ndarray, detection: Detection) -> WholeNucleus:
    """Adds to a part what its detection covers of others, if that is much."""
    extent = detection.extent
    seen = labels[extent.window]
    hidden = np.count_nonzero(extent.inside & (seen > 0) & (seen != label))
    whole = part
    if hidden >= MIN_HIDDEN * extent.area and shared_pixels(part, extent) >= MIN_FIT * part.area:
        whole = _united(part, extent._replace(inside=extent.inside & (seen > 0))) or part
    return WholeNucleus(whole, part, *detection[1:])


def _divided(part: Extent, labels: np.ndarray, detections: Sequence[Detection]) -> list[WholeNucleus]:
    """Makes a nucleus of each detection; pixels of the part that none covers go to the nearest one."""
    within = [
        _solid(detection.extent.inside & (labels[detection.extent.window] > 0), detection.extent)
        for detection in detections
    ]
    found = [(extent, detection) for extent, detection in zip(within, detections, strict=True) if extent is not None]
    owner = np.zeros(part.inside.shape, np.int32)
    for index, (extent, _) in enumerate(found, start=1):
        covered = part.inside & ~_without(part.inside, part, extent)
        owner[covered & (owner == 0)] = index
    _, nearest = cv2.distanceTransformWithLabels(
        (owner == 0).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    by_place = np.zeros(int(nearest.max()) + 1, np.int32)
    by_place[nearest[owner > 0]] = owner[owner > 0]
    owner = np.where(part.inside, by_place[nearest], 0)
    nuclei = []
    for index, (extent, detection) in enumerate(found, start=1):
        seen = trimmed(owner == index, top=part.top, left=part.left)
        if seen is not None:
            nuclei.append(WholeNucleus(_united(seen, extent) or seen, seen, *detection[1:]))
    return nuclei


def _united(one: Extent, other: Extent) -> Extent | None:
    """Returns the largest 4-connected component of the pixels of both, with its holes filled."""
    top, left = min(one.top, other.top), min(one.left, other.left)
    bottom = max(one.window[0].stop, other.window[0].stop)
    right = max(one.window[1].stop, other.window[1].stop)
    both = np.zeros((bottom - top, right - left), bool)
    for extent in (one, other):
        both[extent.moved(-top, -left).window] |= extent.inside
    return _solid(both, Extent(top, left, both))


def _solid(inside: np.ndarray, place: Extent) -> Extent | None:
    """Returns the largest 4-connected component of pixels at a place, with its holes filled; None without a pixel."""
    if not inside.any():
        return None
    _, components, stats, _ = cv2.connectedComponentsWithStats(inside.astype(np.uint8), connectivity=4)
    largest = components == 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
    _, outside = cv2.connectedComponents(np.pad(~largest, 1, constant_values=True).astype(np.uint8), connectivity=8)
    return trimmed((outside != outside[0, 0])[1:-1, 1:-1], top=place.top, left=place.left)
