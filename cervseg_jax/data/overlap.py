"""Augmentation by overlapping nuclei: moves copies of nuclei onto others, with the truth of both at full extent.

A copy absorbs light as its original does, relative to what surrounds it: transmittances are multiplied, as those of
cells that lie on each other in transmitted light (Beer-Lambert).

Reference: Ghiasi et al. 2021, arXiv:2012.07177 (copies of annotated objects), with absorption instead of replacement.
"""

from collections.abc import Mapping
from typing import Annotated, NamedTuple

import cv2
import numpy as np
from pydantic import Field

from cervseg_jax.data.samples import Sample
from cervseg_jax.extents import Extent, extents_of, layers_of, shared_pixels

MARGIN_PX = 4
"""Width of the surroundings of a nucleus, from which its background is taken."""
EDGE_SD_PX = 0.7
"""Softness of a copy's edge."""
MAX_TRANSMITTANCE = 0.93
"""Nuclei that transmit more light than this, relative to their surroundings, are not copied: none would see them."""
MIN_AREA_PX = 40
MAX_TRIES = 4
"""Places that are tried for one copy."""


class Copy(NamedTuple):
    """A nucleus that can be laid onto others."""

    extent: Extent
    """Its pixels; `top` and `left` are those of its original, or of a place in another image."""
    transmittance: np.ndarray
    """float32 [h, w, 3] in [0, 1], on the box of `extent` with `MARGIN_PX` around it; 1 outside of the nucleus."""


def is_separate(label: int, extent: Extent, labels: np.ndarray) -> bool:
    """Whether a nucleus is whole in the image and touches no other one."""
    (rows, columns), margin = extent.window, MARGIN_PX
    top, left = rows.start - margin, columns.start - margin
    bottom, right = rows.stop + margin, columns.stop + margin
    if extent.area < MIN_AREA_PX or top < 0 or left < 0 or bottom > labels.shape[0] or right > labels.shape[1]:
        return False
    near = cv2.dilate(np.pad(extent.inside, margin).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    return set(np.unique(labels[top:bottom, left:right][near]).tolist()) <= {0, label}


def take_copy(image: np.ndarray, labels: np.ndarray, extent: Extent, rng: np.random.Generator) -> Copy | None:
    """Copies a separate nucleus, mirrored and turned by a multiple of 90 degrees at random.

    Args:
      image: uint8 RGB [h, w, 3].
      labels: label map [h, w].
      extent: the nucleus, see `is_separate`.
      rng: source of randomness.

    Returns:
      The copy; None where nothing surrounds the nucleus, or it is hardly darker than that.
    """
    (rows, columns), margin = extent.window, MARGIN_PX
    window = np.s_[rows.start - margin : rows.stop + margin, columns.start - margin : columns.stop + margin]
    inside, picture = np.pad(extent.inside, margin), image[window].astype(np.float32)
    around = labels[window] == 0
    around &= cv2.dilate(inside.astype(np.uint8), np.ones((3, 3), np.uint8)) == 0
    if around.sum() < MARGIN_PX**2:
        return None
    background = np.median(picture[around], axis=0)
    transmittance = np.clip((picture + 1) / (background + 1), 0.02, 1.0)
    if transmittance[inside].mean() > MAX_TRANSMITTANCE:
        return None
    alpha = cv2.GaussianBlur(inside.astype(np.float32), (0, 0), EDGE_SD_PX)[..., None]
    turns, is_mirrored = int(rng.integers(4)), rng.random() < 0.5

    def turned(values: np.ndarray) -> np.ndarray:
        values = np.rot90(values, turns)
        return np.ascontiguousarray(values[:, ::-1] if is_mirrored else values)

    return Copy(Extent(extent.top, extent.left, turned(extent.inside)), turned(1 - alpha * (1 - transmittance)))


def place_on(
    copy: Copy, target: Extent, degree: float, *, shape: tuple[int, ...], rng: np.random.Generator
) -> Copy | None:
    """Moves a copy beside or onto a nucleus, from a random direction.

    Args:
      copy: the copy.
      target: the nucleus.
      degree: common pixels over the area of the smaller nucleus that are wanted; 0: the two touch.
      shape: height and width of the image.
      rng: source of randomness.

    Returns:
      The copy at the place whose overlap comes closest; None if it would not lie within the image.
    """
    angle = rng.uniform(0, 2 * np.pi)
    step = np.array([np.sin(angle), np.cos(angle)])
    start = np.array([target.top, target.left]) + (np.array(target.inside.shape) - copy.extent.inside.shape) / 2
    smaller = min(copy.extent.area, target.area)
    reach = (np.hypot(*target.inside.shape) + np.hypot(*copy.extent.inside.shape)) / 2
    places, shares = [], []
    for distance in np.arange(reach, -0.5, -1.0):
        top, left = np.rint(start + distance * step).astype(int).tolist()
        moved = copy.extent._replace(top=top, left=left)
        places.append(moved)
        shares.append(shared_pixels(moved, target) / smaller)
        if shares[-1] > degree:
            break
    off = np.abs(np.array(shares) - degree)
    best = len(off) - 1 - int(np.argmin(off[::-1]))  # among equals, as without overlap, the one that is nearest
    found = places[best]
    bottom, right = found.top + found.inside.shape[0], found.left + found.inside.shape[1]
    margin = MARGIN_PX
    fits = min(found.top, found.left) >= margin and bottom + margin <= shape[0] and right + margin <= shape[1]
    return copy._replace(extent=found) if fits else None


def lay_down(image: np.ndarray, copy: Copy) -> None:
    """Darkens an image, uint8 [h, w, 3], where a copy lies."""
    height, width = copy.transmittance.shape[:2]
    top, left = copy.extent.top - MARGIN_PX, copy.extent.left - MARGIN_PX
    part = image[top : top + height, left : left + width]
    part[...] = np.rint(part * copy.transmittance).astype(np.uint8)


def overlap(
    sample: Sample,
    rng: np.random.Generator,
    *,
    max_copies: Annotated[int, Field(ge=1)] = 6,
    degree: tuple[Annotated[float, Field(ge=0.0, le=1.0)], Annotated[float, Field(ge=0.0, le=1.0)]] = (0.0, 0.7),
) -> Sample:
    """Lays copies of nuclei onto other nuclei of the sample, which both stay known at full extent.

    Copied are nuclei that touch no other one and are darker than what surrounds them. A sample without instance labels
    is returned as it is.

    Args:
      sample: image and labels.
      rng: source of randomness.
      max_copies: largest number of copies; uniform from 1.
      degree: smallest and largest overlap of a copy and its target, as a share of the smaller one; uniform.

    Returns:
      The sample with more nuclei; its label map shows smaller nuclei on top.
    """
    if sample.instances is None:
        return sample
    extents: dict[int, Extent] = extents_of(sample.instances, sample.covered)
    separate = [label for label, extent in extents.items() if is_separate(label, extent, sample.instances)]
    count = int(rng.integers(1, max_copies + 1))
    if not separate:
        return sample
    image, added = sample.image.copy(), dict(extents)
    for _ in range(count):
        label = separate[int(rng.integers(len(separate)))]
        copy = take_copy(sample.image, sample.instances, extents[label], rng)
        placed = None if copy is None else _placed(copy, label, added, degree, sample.mask.shape, rng)
        if placed is not None:
            lay_down(image, placed)
            added[max(added) + 1] = placed.extent
    labels, covered = layers_of(added, shape=(sample.mask.shape[0], sample.mask.shape[1]))
    mask = np.maximum(sample.mask, (labels > 0).astype(sample.mask.dtype))
    return Sample(image, mask, labels, covered)


def _placed(
    copy: Copy,
    label: int,
    extents: Mapping[int, Extent],
    degree: tuple[float, float],
    shape: tuple[int, ...],
    rng: np.random.Generator,
) -> Copy | None:
    """Places a copy on a random nucleus; None where no place within the image is found."""
    targets = [extent for other, extent in extents.items() if other != label and extent.area >= MIN_AREA_PX]
    for _ in range(MAX_TRIES if targets else 0):
        target = targets[int(rng.integers(len(targets)))]
        placed = place_on(copy, target, rng.uniform(*degree), shape=shape, rng=rng)
        if placed is not None:
            return placed
    return None
