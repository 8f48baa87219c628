"""Geometric augmentations: drawn once and applied to image, mask and instance labels alike.

Labels are resampled by nearest neighbor, with background outside.
"""

from collections.abc import Callable, Sequence
from typing import Annotated

import cv2
import numpy as np
from pydantic import Field

from cervseg_jax.data.resize import border_color, resize_image, resize_mask, scaled_size
from cervseg_jax.data.samples import Sample, map_sample
from cervseg_jax.schema import PositiveFloat

NonNegative = Annotated[float, Field(ge=0.0)]


def flip(sample: Sample, rng: np.random.Generator) -> Sample:
    """Mirrors left-right, top-bottom, both or not, with equal chances."""
    window = tuple(slice(None, None, -1) if rng.random() < 0.5 else slice(None) for _ in range(2))
    return map_sample(sample, lambda image: image[window], lambda labels: labels[window])


def rotate90(sample: Sample, rng: np.random.Generator) -> Sample:
    """Rotates by a random multiple of 90 degrees; by 0 or 180 where the image is not square."""
    height, width = sample.mask.shape
    turns = int(rng.integers(4)) if height == width else 2 * int(rng.integers(2))
    return map_sample(sample, lambda image: np.rot90(image, turns), lambda labels: np.rot90(labels, turns))


def affine(
    sample: Sample,
    rng: np.random.Generator,
    *,
    max_degrees: NonNegative = 180.0,
    scale: tuple[float, float] = (0.8, 1.25),
    max_shift: NonNegative = 0.05,
    max_shear: NonNegative = 0.0,
) -> Sample:
    """Rotates, scales, shears and shifts about the image's true center.

    What comes in from outside has the median color of the image's border, and no nuclei.

    Args:
      sample: image and labels.
      rng: source of randomness.
      max_degrees: the angle is uniform in [-max_degrees, max_degrees].
      scale: smallest and largest magnification; drawn log-uniformly.
      max_shift: largest shift as a share of each side.
      max_shear: largest vertical shift per pixel to the side of the center.

    Returns:
      The warped sample.
    """
    height, width = sample.mask.shape
    angle = rng.uniform(-max_degrees, max_degrees)
    factor = float(np.exp(rng.uniform(np.log(scale[0]), np.log(scale[1]))))
    center = ((width - 1) / 2, (height - 1) / 2)
    matrix = cv2.getRotationMatrix2D(center, angle, factor)
    matrix[:, 2] += rng.uniform(-max_shift, max_shift, size=2) * (width, height)
    amount = rng.uniform(-max_shear, max_shear)
    sheared = np.array([[1, 0, 0], [amount, 1, -amount * center[0]], [0, 0, 1]])
    return _warp_affine(sample, np.linalg.inv(np.vstack([matrix, [0, 0, 1]]) @ sheared)[:2])


def elastic(
    sample: Sample, rng: np.random.Generator, *, max_shift_px: NonNegative = 6.0, sigma_px: PositiveFloat = 24.0
) -> Sample:
    """Displaces every point by a smooth random field, the same one for image and labels.

    Args:
      sample: image and labels.
      rng: source of randomness.
      max_shift_px: length of the largest displacement.
      sigma_px: smoothness of the field; below about `max_shift_px` the picture would fold.

    Returns:
      The warped sample.

    Reference: Simard et al. 2003, ICDAR, with a field that is drawn coarsely and enlarged.
    """
    height, width = sample.mask.shape
    coarse = rng.standard_normal((2, int(height / sigma_px) + 4, int(width / sigma_px) + 4)).astype(np.float32)
    dx, dy = (cv2.resize(plane, (width, height), interpolation=cv2.INTER_CUBIC) for plane in coarse)
    factor = np.float32(max_shift_px / max(float(cv2.magnitude(dx, dy).max()), 1e-6))
    rows, columns = _positions(height, width)
    return _remap(sample, columns + dx * factor, rows + dy * factor)


def bulge(
    sample: Sample, rng: np.random.Generator, *, radius: PositiveFloat = 0.3, max_amount: NonNegative = 0.3
) -> Sample:
    """Magnifies or shrinks a disc at a random place (barrel and pincushion).

    Args:
      sample: image and labels.
      rng: source of randomness.
      radius: of the disc, as a share of the width.
      max_amount: exponent of the radial profile; uniform in [-max_amount, max_amount], positive magnifies.

    Returns:
      The warped sample.
    """
    height, width = sample.mask.shape
    amount, reach = rng.uniform(-max_amount, max_amount), width * radius
    x0, y0 = rng.uniform(0.25, 0.75, 2) * (width, height)
    rows, columns = _positions(height, width)
    dx, dy = np.broadcast_arrays(columns - np.float32(x0), rows - np.float32(y0))
    share = np.clip(cv2.magnitude(dx, dy) / np.float32(reach), np.float32(1e-6), np.float32(1.0))
    factor = cv2.pow(np.sin(np.float32(np.pi / 2) * share), amount)
    return _remap(sample, np.float32(x0) + factor * dx, np.float32(y0) + factor * dy)


def random_window(
    sample: Sample,
    rng: np.random.Generator,
    *,
    size: tuple[int, int],
    scale: tuple[float, float],
    max_degrees: float,
    nucleus_share: float,
) -> Sample:
    """Takes a rotated and magnified window at a random place of an image of any size, in one interpolation.

    Args:
      sample: image and labels.
      rng: source of randomness.
      size: height and width of the window, in pixels.
      scale: smallest and largest magnification; log-uniform.
      max_degrees: the angle is uniform in [-max_degrees, max_degrees].
      nucleus_share: share of windows that contain a random pixel of a nucleus; the others lie anywhere.

    Returns:
      A sample of the given size. Pixels beyond the image have the median color of its border, and no nuclei.
    """
    factor = float(np.exp(rng.uniform(np.log(scale[0]), np.log(scale[1]))))
    angle = np.deg2rad(rng.uniform(-max_degrees, max_degrees))
    on_nucleus, place = rng.random() < nucleus_share, rng.random()
    offset = rng.uniform(-0.5, 0.5, 2)
    lengths, reach = np.array(sample.mask.shape), np.array(size) / factor
    inside = np.flatnonzero(sample.mask) if on_nucleus else np.zeros(0, int)
    if inside.size:
        pixel = np.array(np.unravel_index(inside[int(place * inside.size)], sample.mask.shape))
        center = pixel + 0.8 * offset * reach
    else:
        center = lengths / 2 + 2 * offset * np.maximum(lengths - reach, 0) / 2
    row, column = np.where(lengths > reach, np.clip(center, reach / 2, lengths - reach / 2), lengths / 2) - 0.5
    cos, sin = np.cos(angle) / factor, np.sin(angle) / factor
    turn = np.array([[cos, sin], [-sin, cos]])
    shift = np.array([column, row]) - turn @ ((np.array(size[::-1]) - 1) / 2)
    return _warp_affine(sample, np.column_stack([turn, shift]), size)


def shrink(
    sample: Sample,
    rng: np.random.Generator,
    *,
    scale: tuple[PositiveFloat, PositiveFloat] = (0.15, 0.5),
) -> Sample:
    """Shrinks the sample and fills its size with mirrored copies.

    Networks of one scale learn by it that whole cells, which look like nuclei in a much smaller image, are none.

    Args:
      sample: image and labels.
      rng: source of randomness.
      scale: smallest and largest factor; log-uniform.

    Returns:
      A sample of the same size.
    """
    factor = float(np.exp(rng.uniform(np.log(scale[0]), np.log(scale[1]))))
    height, width = sample.mask.shape
    small = scaled_size((height, width), min(factor, 1.0))
    below, right = height - small[0], width - small[1]

    def filled(picture: np.ndarray) -> np.ndarray:
        return np.asarray(cv2.copyMakeBorder(picture, 0, below, 0, right, cv2.BORDER_REFLECT))

    def filled_labels(labels: np.ndarray) -> np.ndarray:
        # OpenCV copies no 64-bit integers; float32 holds label numbers exactly up to 2^24.
        given = labels if labels.dtype == np.uint8 else labels.astype(np.float32)
        return filled(resize_mask(given, small)).astype(labels.dtype)

    return map_sample(sample, lambda image: filled(resize_image(image, small)), filled_labels)


def crop(
    sample: Sample, rng: np.random.Generator, *, min_share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.6
) -> Sample:
    """Takes a random window and enlarges it to the full size.

    Args:
      sample: image and labels.
      rng: source of randomness.
      min_share: smallest side of the window as a share of the image's; uniform up to 1.

    Returns:
      The window, of the sample's size.
    """
    height, width = sample.mask.shape
    share = rng.uniform(min_share, 1.0)
    left, top = rng.uniform(0.0, 1.0 - share, 2) * (width, height)
    corner = np.array([left, top]) + 0.5 * share - 0.5
    return _warp_affine(sample, np.column_stack([share * np.eye(2), corner]))


def _positions(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows [h, 1] and columns [1, w], float32: what `remap` takes, and half the time of float64."""
    return np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)[None]


def _warp_affine(sample: Sample, origin: np.ndarray, size: tuple[int, ...] | None = None) -> Sample:
    """Fetches pixels from the positions `origin` [2, 3] @ (x, y, 1); `size` is the sample's by default."""
    height, width = sample.mask.shape if size is None else size

    def fetch(picture: np.ndarray, interpolation: int, outside: Sequence[float]) -> np.ndarray:
        flags = interpolation | cv2.WARP_INVERSE_MAP
        return cv2.warpAffine(picture, origin, (width, height), flags=flags, borderValue=outside)

    return _fetch(sample, fetch)


def _remap(sample: Sample, map_x: np.ndarray, map_y: np.ndarray) -> Sample:
    """Fetches from positions, float32 [h, w]."""
    return _fetch(
        sample,
        lambda picture, interpolation, outside: cv2.remap(picture, map_x, map_y, interpolation, borderValue=outside),
    )


def _fetch(sample: Sample, fetch: Callable[[np.ndarray, int, Sequence[float]], np.ndarray]) -> Sample:
    """Fetches the image bilinearly, with its border's color outside, and labels by nearest, background outside."""
    color = border_color(sample.image)

    def fetch_labels(labels: np.ndarray) -> np.ndarray:
        # OpenCV warps no 32-bit integers; float32 holds label numbers exactly up to 2^24.
        given = labels if labels.dtype == np.uint8 else labels.astype(np.float32)
        return fetch(given, cv2.INTER_NEAREST, (0.0,)).astype(labels.dtype)

    return map_sample(sample, lambda image: fetch(image, cv2.INTER_LINEAR, color), fetch_labels)
