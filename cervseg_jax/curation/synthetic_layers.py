"""What synthetic images of Pap smears are made of: dyes, and the layers that absorb light.

The image is formed as in a microscope: every layer absorbs light, absorbances (optical densities) add up per color
channel, and the camera sees the remaining light.
"""

from typing import NamedTuple

import cv2
import numpy as np

from cervseg_jax.annotations.outlines import Rings, enclosed_area
from cervseg_jax.curation.synthetic_layout import make_outline
from cervseg_jax.curation.synthetic_noise import NoiseBank


class Stain(NamedTuple):
    """Light and dyes of one slide; absorbances by channel R, G, B."""

    light: tuple[float, float, float]
    """Color of the empty slide, 0..255."""
    nucleus: tuple[float, float, float]
    cytoplasm: tuple[float, float, float]


class Scene(NamedTuple):
    """A synthetic image and its annotation."""

    image: np.ndarray
    """uint8 [h, w, 3], RGB."""
    outlines: list[Rings]
    """Outlines of all nuclei at full extent, in drawing order: later ones lie on top."""
    stain: str


def soft_shape(
    outline: np.ndarray, shape: tuple[int, int], softness_px: float
) -> tuple[tuple[slice, slice], np.ndarray] | None:
    """Returns coverage in [0, 1] with a blurred edge, within a window of the image; None if it lies outside."""
    margin = int(3 * softness_px) + 2
    height, width = shape
    low = np.maximum(np.floor(outline.min(axis=0)).astype(int) - margin, 0)
    high = np.minimum(np.ceil(outline.max(axis=0)).astype(int) + margin, (width, height))
    if (high <= low).any():
        return None
    coverage = np.zeros((high[1] - low[1], high[0] - low[0]), np.uint8)
    corners = np.round((outline - low - 0.5) * 16).astype(np.int32)
    cv2.fillPoly(coverage, [corners], 255, lineType=cv2.LINE_AA, shift=4)
    soft = cv2.GaussianBlur(coverage.astype(np.float32) / 255, (0, 0), max(softness_px, 0.3))
    return (slice(low[1], high[1]), slice(low[0], high[0])), soft


def add_nucleus(
    density: np.ndarray, outline: np.ndarray, stain: Stain, noise: NoiseBank, rng: np.random.Generator
) -> None:
    """Adds one nucleus: chromatin grain, a darker membrane, sometimes nucleoli, its own focus."""
    radius = np.sqrt(enclosed_area([outline]) / np.pi)
    softness = rng.uniform(0.5, 0.5 + 0.07 * radius)
    placed = soft_shape(outline, density.shape[:2], softness)
    if placed is None:
        return
    window, coverage = placed
    grain = rng.uniform(0.03, 0.16)
    texture = 1 + grain * noise.read(1.0, window, rng) + 1.3 * grain * noise.read(2.5, window, rng)
    membrane = cv2.GaussianBlur(coverage, (0, 0), max(0.10 * radius, 0.8))
    texture += rng.uniform(0.0, 0.5) * np.clip(coverage - membrane, 0, 1)
    for _ in range(int(rng.integers(0, 3))):
        spot = outline.mean(axis=0) + rng.uniform(-0.4, 0.4, 2) * radius
        rows, columns = np.mgrid[window]
        squared = (columns - spot[0]) ** 2 + (rows - spot[1]) ** 2
        texture += rng.uniform(0.1, 0.35) * np.exp(-squared / (2 * (0.13 * radius) ** 2))
    strength = rng.uniform(0.72, 1.18)
    density[window] += (strength * coverage * np.clip(texture, 0.3, 1.9))[..., None] * np.array(
        stain.nucleus, np.float32
    )


def add_debris(density: np.ndarray, stain: Stain, noise: NoiseBank, rng: np.random.Generator) -> None:
    """Adds specks, and faint strands of mucus."""
    height, width = density.shape[:2]
    for _ in range(int(rng.integers(0, 14))):
        speck = make_outline(rng.uniform(0, 1, 2) * (width, height), rng.uniform(0.8, 3.0), 1.5, rng.uniform(0, 3), rng)
        placed = soft_shape(speck, (height, width), rng.uniform(0.4, 1.2))
        if placed is not None:
            density[placed[0]] += (rng.uniform(0.1, 0.7) * placed[1])[..., None]
    if rng.random() < 0.3:
        strands = np.clip(np.abs(noise.whole(8.0) + 0.6 * noise.whole(40.0)) < 0.07, 0, 1).astype(np.float32)
        strands = cv2.GaussianBlur(strands, (0, 0), 1.6) * np.clip(noise.whole(40.0), 0, 1)
        density += (0.2 * strands)[..., None] * np.array(stain.cytoplasm, np.float32)


def expose(
    density: np.ndarray, color: np.ndarray, noise: NoiseBank, *, slope: np.ndarray, falloff: float = 0.0
) -> np.ndarray:
    """Returns the light that passes, float32 [h, w, 3], about 0..255, under an uneven lamp.

    Args:
      density: absorbances, float32 [h, w, 3].
      color: of the empty slide, 0..255, float32 [3].
      noise: unevenness of the lamp.
      slope: change of the light from the middle to the lower and to the right edge, as shares.
      falloff: loss of light from the middle to the edges, as a share.
    """
    height, width = density.shape[:2]
    rows, columns = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    light = 1 + slope[0] * rows + slope[1] * columns - falloff * (rows**2 + columns**2)
    light = light + 0.012 * noise.whole(40.0)
    # Scattered light keeps the darkest nuclei from being black.
    return 10 + color * light[..., None] * np.exp(-density) * (245 / 255)


def develop(picture: np.ndarray, rng: np.random.Generator, *, max_noise: float, min_quality: int) -> np.ndarray:
    """Returns what a camera stores, uint8 [h, w, 3], with sensor noise and often JPEG compression.

    Args:
      picture: intensities in 0..255, float32 [h, w, 3].
      rng: source of chance.
      max_noise: largest standard deviation of the noise.
      min_quality: lowest quality of JPEG.
    """
    picture += rng.normal(0, rng.uniform(0.5, max_noise), picture.shape[:2]).astype(np.float32)[..., None]
    image = np.clip(np.round(picture), 0, 255).astype(np.uint8)
    if rng.random() < 0.6:
        quality = int(rng.integers(min_quality, 96))
        _, packed = cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
        image = np.asarray(cv2.imdecode(packed, cv2.IMREAD_COLOR))[:, :, ::-1].copy()
    return image
