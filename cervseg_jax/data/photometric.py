"""Photometric augmentations: they change the image alone."""

from typing import Annotated

import cv2
import numpy as np
from pydantic import Field

from cervseg_jax.data.samples import Sample

NonNegative = Annotated[float, Field(ge=0.0)]
Quality = Annotated[int, Field(ge=1, le=95)]


def color(
    sample: Sample,
    rng: np.random.Generator,
    *,
    brightness: NonNegative = 0.1,
    contrast: NonNegative = 0.1,
    hue_degrees: NonNegative = 8.0,
    saturation: NonNegative = 0.15,
) -> Sample:
    """Varies the image's colors as scanners and stains do.

    Args:
      sample: image and mask; the mask is left alone.
      rng: source of randomness.
      brightness: largest shift, as a share of the full range.
      contrast: largest relative change of the distance from mid-gray.
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


def sharpen(sample: Sample, rng: np.random.Generator, *, max_amount: NonNegative = 1.0) -> Sample:
    """Adds up to `max_amount` times the difference between the image and its blurred self."""
    amount = rng.uniform(0.0, max_amount)
    soft = cv2.GaussianBlur(sample.image, (0, 0), 1.0)
    return sample._replace(image=cv2.addWeighted(sample.image, 1 + amount, soft, -amount, 0))


def noise(sample: Sample, rng: np.random.Generator, *, max_sigma: NonNegative = 6.0) -> Sample:
    """Adds sensor noise with a uniform deviation of up to `max_sigma` gray levels."""
    sigma = rng.uniform(0.0, max_sigma)
    grain = rng.standard_normal(sample.image.shape[:2], np.float32) * np.float32(sigma)
    return sample._replace(image=cv2.add(sample.image, cv2.merge([grain] * 3), dtype=cv2.CV_8U))


# Absorbances of haematoxylin, eosin and DAB in R, G, B.
HED = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
# Absorbance of each gray level.
DENSITY = -np.log(np.maximum(np.arange(256), 1) / 255.0).astype(np.float32)


def stain(
    sample: Sample, rng: np.random.Generator, *, max_gain: NonNegative = 0.15, max_offset: NonNegative = 0.03
) -> Sample:
    """Varies the amounts of the dyes, as laboratories do: each stain's absorbance is scaled and shifted.

    Args:
      sample: image and labels.
      rng: source of randomness.
      max_gain: largest relative change of a dye's absorbance.
      max_offset: largest absorbance that is added to or taken from a dye.

    Returns:
      The sample with a changed image.

    Reference: Tellez et al. 2018, IEEE TMI 37(9), with the stain vectors of Ruifrok and Johnston 2001.
    """
    gain = 1.0 + rng.uniform(-max_gain, max_gain, 3)
    offset = rng.uniform(-max_offset, max_offset, 3)
    # The way to the dyes, the change and the way back are one linear map of absorbances.
    change = np.linalg.inv(HED) @ np.diag(gain) @ HED
    changed = cv2.transform(cv2.LUT(sample.image, DENSITY), np.column_stack([change.T, offset @ HED]))
    transmitted = cv2.exp(-np.maximum(changed, 0.0, out=changed))
    return sample._replace(image=cv2.convertScaleAbs(transmitted, alpha=255.0))


def gray(sample: Sample, rng: np.random.Generator) -> Sample:
    """Turns the image gray with random weights of the channels, as cameras without color and other filters do."""
    weights = np.tile(rng.dirichlet((2.0, 2.0, 2.0)), (3, 1))
    return sample._replace(image=cv2.transform(sample.image, weights))


def jpeg(sample: Sample, rng: np.random.Generator, *, min_quality: Quality = 40) -> Sample:
    """Compresses the image as JPEG with a quality from `min_quality` to 95."""
    quality = int(rng.integers(min_quality, 96))
    _, encoded = cv2.imencode(".jpg", sample.image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return sample._replace(image=np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR)))


def reinhard(
    sample: Sample, rng: np.random.Generator, *, max_shift: NonNegative = 15.0, max_gain: NonNegative = 0.3
) -> Sample:
    """Moves mean and spread of lightness and color opponents in CIELAB, as between slides of different laboratories.

    Args:
      sample: image and labels.
      rng: source of randomness.
      max_shift: largest shift of each channel's mean, in 8-bit levels.
      max_gain: largest relative change of each channel's standard deviation.

    Returns:
      The sample with a changed image.

    Reference: Reinhard et al. 2001, IEEE CG&A 21(5), equations 10 and 11, with random target statistics.
    """
    lab = cv2.cvtColor(sample.image, cv2.COLOR_RGB2LAB).astype(np.float32)
    mean = lab.mean(axis=(0, 1))
    gain = 1.0 + rng.uniform(-max_gain, max_gain, 3)
    shifted = (lab - mean) * gain + mean + rng.uniform(-max_shift, max_shift, 3)
    changed = np.clip(np.rint(shifted), 0, 255).astype(np.uint8)
    return sample._replace(image=cv2.cvtColor(changed, cv2.COLOR_LAB2RGB))
