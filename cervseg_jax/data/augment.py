"""Augmentation of training samples, in numpy and OpenCV.

An operation is `(sample, rng, **args) -> sample`. Geometry is drawn once and applied to image and mask alike, masks
by nearest neighbour with background outside; colour changes touch the image alone.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import cv2
import numpy as np
from pydantic import Field

NonNegative = Annotated[float, Field(ge=0.0)]


class Sample(NamedTuple):
    """One image with its mask, both of the network's input size."""

    image: np.ndarray
    """uint8 [h, w, 3], RGB."""
    mask: np.ndarray
    """uint8 [h, w], 0 or 1."""


Operation = Callable[..., Sample]


def flip(sample: Sample, rng: np.random.Generator) -> Sample:
    """Mirrors left-right, top-bottom, both or not, with equal chances."""
    steps = (slice(None, None, -1) if rng.random() < 0.5 else slice(None) for _ in range(2))
    window = tuple(steps)
    return Sample(sample.image[window], sample.mask[window])


def rotate90(sample: Sample, rng: np.random.Generator) -> Sample:
    """Rotates by a random multiple of 90 degrees; by 0 or 180 where the image is not square."""
    height, width = sample.mask.shape
    turns = int(rng.integers(4)) if height == width else 2 * int(rng.integers(2))
    return Sample(np.rot90(sample.image, turns), np.rot90(sample.mask, turns))


def affine(
    sample: Sample,
    rng: np.random.Generator,
    *,
    max_degrees: NonNegative = 180.0,
    scale: tuple[float, float] = (0.8, 1.25),
    max_shift: NonNegative = 0.05,
) -> Sample:
    """Rotates, scales and shifts about the image's centre.

    What comes in from outside has the median colour of the image's border, and no nuclei.

    Args:
      sample: image and mask.
      rng: source of randomness.
      max_degrees: the angle is uniform in [-max_degrees, max_degrees].
      scale: smallest and largest magnification; drawn log-uniformly.
      max_shift: largest shift as a share of each side.

    Returns:
      The warped sample.
    """
    height, width = sample.mask.shape
    angle = rng.uniform(-max_degrees, max_degrees)
    factor = float(np.exp(rng.uniform(np.log(scale[0]), np.log(scale[1]))))
    centre = ((width - 1) / 2, (height - 1) / 2)
    matrix = cv2.getRotationMatrix2D(centre, angle, factor)
    matrix[:, 2] += rng.uniform(-max_shift, max_shift, size=2) * (width, height)
    image = cv2.warpAffine(
        sample.image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderValue=border_colour(sample.image)
    )
    mask = cv2.warpAffine(sample.mask, matrix, (width, height), flags=cv2.INTER_NEAREST, borderValue=0)
    return Sample(image, mask)


def color(
    sample: Sample,
    rng: np.random.Generator,
    *,
    brightness: NonNegative = 0.1,
    contrast: NonNegative = 0.1,
    hue_degrees: NonNegative = 8.0,
    saturation: NonNegative = 0.15,
) -> Sample:
    """Varies the image's colours as scanners and stains do.

    Args:
      sample: image and mask; the mask is left alone.
      rng: source of randomness.
      brightness: largest shift, as a share of the full range.
      contrast: largest relative change of the distance from mid-grey.
      hue_degrees: largest rotation of the hue.
      saturation: largest relative change of the saturation.

    Returns:
      The sample with a changed image.
    """
    gain = 1.0 + rng.uniform(-contrast, contrast)
    offset = 127.5 * (1.0 - gain) + 255.0 * rng.uniform(-brightness, brightness)
    turn = int(round(rng.uniform(-hue_degrees, hue_degrees) * 256 / 360))
    strength = 1.0 + rng.uniform(-saturation, saturation)
    levels = np.arange(256)
    hsv = cv2.cvtColor(sample.image, cv2.COLOR_RGB2HSV_FULL)
    table = np.empty((1, 256, 3), np.uint8)
    table[0, :, 0] = (levels + turn) % 256
    table[0, :, 1] = np.clip(levels * strength, 0, 255)
    table[0, :, 2] = np.clip(levels * gain + offset, 0, 255)
    return sample._replace(image=cv2.cvtColor(cv2.LUT(hsv, table), cv2.COLOR_HSV2RGB_FULL))


def blur(sample: Sample, rng: np.random.Generator, *, max_sigma_px: NonNegative = 1.5) -> Sample:
    """Blurs the image as a lens out of focus does, with a uniform sigma up to `max_sigma_px`."""
    sigma = rng.uniform(0.0, max_sigma_px)
    if sigma < 0.1:
        return sample
    return sample._replace(image=cv2.GaussianBlur(sample.image, (0, 0), sigma))


AUGMENTATIONS: Mapping[str, Operation] = {
    "flip": flip,
    "rotate90": rotate90,
    "affine": affine,
    "color": color,
    "blur": blur,
}
"""Operations by config name."""


def border_colour(image: np.ndarray) -> tuple[float, ...]:
    """Returns the median colour of the outermost pixels: the slide's background in most images."""
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    return tuple(float(value) for value in np.median(border, axis=0))


def apply_operations(
    sample: Sample, rng: np.random.Generator, operations: Sequence[tuple[Operation, float, Mapping[str, Any]]]
) -> Sample:
    """Applies operations in order, each with its probability.

    Args:
      sample: image and mask.
      rng: a generator that belongs to this sample alone, so that the result is a function of its seed.
      operations: (function, probability, keyword arguments).

    Returns:
      A sample of the same size, in contiguous arrays.
    """
    for function, probability, args in operations:
        if rng.random() < probability:
            sample = function(sample, rng, **args)
    return Sample(np.ascontiguousarray(sample.image), np.ascontiguousarray(sample.mask))
