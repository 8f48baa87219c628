"""Synthetic images of Pap-smear clusters with exact outlines.

The image is formed as in a microscope: every layer absorbs light, absorbances (optical densities) add up per color
channel, and the camera sees the remaining light. Overlapping nuclei are therefore darker, and cytoplasm is translucent.
Everything is a function of the seed.
"""

from typing import NamedTuple

import cv2
import numpy as np

from cervseg_jax.annotations.outlines import Rings, enclosed_area
from cervseg_jax.curation.synthetic_layout import make_outline, place_nuclei
from cervseg_jax.curation.synthetic_noise import NoiseBank


class Stain(NamedTuple):
    """Light and dyes of one slide; absorbances by channel R, G, B."""

    light: tuple[float, float, float]
    """Color of the empty slide, 0..255."""
    nucleus: tuple[float, float, float]
    cytoplasm: tuple[float, float, float]


STAINS: dict[str, Stain] = {
    "blue": Stain((240, 240, 244), (1.55, 1.45, 0.80), (0.62, 0.42, 0.20)),
    "purple": Stain((228, 224, 234), (1.30, 1.60, 0.85), (0.38, 0.46, 0.20)),
    "pink": Stain((236, 230, 238), (1.20, 1.75, 0.90), (0.22, 0.70, 0.34)),
    "teal": Stain((232, 236, 240), (1.65, 1.15, 0.80), (0.85, 0.30, 0.26)),
    "violet_haze": Stain((214, 212, 222), (1.10, 1.15, 0.62), (0.55, 0.34, 0.24)),
}
"""Looks of real slides: haematoxylin nuclei in cyanophilic (blue, teal) or eosinophilic (pink) cytoplasm."""


class Scene(NamedTuple):
    """A synthetic image and its annotation."""

    image: np.ndarray
    """uint8 [h, w, 3], RGB."""
    outlines: list[Rings]
    """Outlines of all nuclei at full extent, in drawing order: later ones lie on top."""
    stain: str


def draw_scene(*, shape: tuple[int, int], seed: int, index: int = 0) -> Scene:
    """Draws one field of view with clusters of touching and overlapping nuclei.

    Args:
      shape: height and width in pixels, at least 64.
      seed: seed of the dataset.
      index: index of the image in the dataset.

    Returns:
      Image, outlines and the name of the stain.

    Raises:
      ValueError: if the image is too small to hold a cluster.
    """
    if min(shape) < 64:
        raise ValueError(f"draw_scene: shape must be at least 64x64, got {shape[0]}x{shape[1]}")
    rng = np.random.default_rng([seed, index])
    name = str(rng.choice(list(STAINS)))
    stain = _vary(STAINS[name], rng)
    noise = NoiseBank(shape, rng)
    outlines = place_nuclei(shape, rng)

    density = np.zeros((*shape, 3), np.float32)
    _add_cytoplasm(density, outlines, stain, noise, rng)
    _add_debris(density, stain, noise, rng)
    _add_leucocytes(density, outlines, stain, noise, rng)
    for outline in outlines:
        _add_nucleus(density, outline, stain, noise, rng)
    return Scene(_photograph(density, stain, noise, rng), [[outline] for outline in outlines], name)


def _vary(stain: Stain, rng: np.random.Generator) -> Stain:
    """Varies a stain as much as stains differ between laboratories."""

    def around(values: tuple[float, float, float], spread: float, strength: float) -> tuple[float, float, float]:
        varied = np.array(values) * strength * np.exp(spread * rng.standard_normal(3))
        return (float(varied[0]), float(varied[1]), float(varied[2]))

    light = np.clip(np.array(stain.light) + rng.normal(0, 5, 3), 190, 250)
    return Stain(
        (float(light[0]), float(light[1]), float(light[2])),
        around(stain.nucleus, 0.06, rng.uniform(0.72, 1.1)),
        around(stain.cytoplasm, 0.10, rng.uniform(0.45, 1.15)),
    )


def _soft_shape(
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


def _add_nucleus(
    density: np.ndarray, outline: np.ndarray, stain: Stain, noise: NoiseBank, rng: np.random.Generator
) -> None:
    """Adds one nucleus: chromatin grain, a darker membrane, sometimes nucleoli, its own focus."""
    radius = np.sqrt(enclosed_area([outline]) / np.pi)
    softness = rng.uniform(0.5, 0.5 + 0.07 * radius)
    placed = _soft_shape(outline, density.shape[:2], softness)
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


def _add_cytoplasm(
    density: np.ndarray, outlines: list[np.ndarray], stain: Stain, noise: NoiseBank, rng: np.random.Generator
) -> None:
    """Adds a translucent body to most nuclei, with folds and uneven thickness."""
    if rng.random() < 0.12:
        return
    reach = rng.uniform(1.5, 3.0)
    for outline in outlines:
        if rng.random() < 0.25:
            continue
        radius = np.sqrt(enclosed_area([outline]) / np.pi)
        center = outline.mean(axis=0) + rng.normal(0, 0.3 * radius, 2)
        body = make_outline(
            center, radius * reach * rng.uniform(0.75, 1.25), rng.uniform(1, 1.8), rng.uniform(0, np.pi), rng
        )
        placed = _soft_shape(body, density.shape[:2], rng.uniform(1.0, 0.25 * radius + 1.5))
        if placed is None:
            continue
        window, coverage = placed
        thickness = 1 + 0.25 * noise.read(8.0, window, rng) + 0.06 * noise.read(1.0, window, rng)
        layer = coverage * np.clip(thickness, 0.2, 2) * rng.uniform(0.15, 0.7)
        density[window] += layer[..., None] * np.array(stain.cytoplasm, np.float32)


def _add_leucocytes(
    density: np.ndarray, outlines: list[np.ndarray], stain: Stain, noise: NoiseBank, rng: np.random.Generator
) -> None:
    """Adds neutrophils as distractors: small cells with two to four dark lobes, which are not annotated."""
    if not outlines:
        return
    height, width = density.shape[:2]
    radius = 0.42 * float(np.median([np.sqrt(enclosed_area([outline]) / np.pi) for outline in outlines]))
    centers = np.array([outline.mean(axis=0) for outline in outlines])
    for _ in range(int(rng.integers(0, 8))):
        center = rng.uniform(0, 1, 2) * (width, height)
        if np.linalg.norm(centers - center, axis=1).min() < 4.5 * radius:
            continue
        body = _soft_shape(make_outline(center, 1.9 * radius, 1.1, 0, rng), (height, width), 1.2)
        if body is not None:
            density[body[0]] += (0.16 * body[1])[..., None] * np.array(stain.cytoplasm, np.float32)
        start = rng.uniform(0, 2 * np.pi)
        for lobe in range(int(rng.integers(2, 5))):
            angle = start + lobe * rng.uniform(1.4, 1.9)
            place = center + 0.75 * radius * np.array([np.cos(angle), np.sin(angle)])
            placed = _soft_shape(make_outline(place, 0.6 * radius, 1.3, angle, rng), (height, width), 0.8)
            if placed is not None:
                window, coverage = placed
                grain = np.clip(1 + 0.15 * noise.read(1.0, window, rng), 0.4, 1.6)
                density[window] += (0.8 * coverage * grain)[..., None] * np.array(stain.nucleus, np.float32)


def _add_debris(density: np.ndarray, stain: Stain, noise: NoiseBank, rng: np.random.Generator) -> None:
    """Adds specks, and faint strands of mucus."""
    height, width = density.shape[:2]
    for _ in range(int(rng.integers(0, 14))):
        speck = make_outline(rng.uniform(0, 1, 2) * (width, height), rng.uniform(0.8, 3.0), 1.5, rng.uniform(0, 3), rng)
        placed = _soft_shape(speck, (height, width), rng.uniform(0.4, 1.2))
        if placed is not None:
            density[placed[0]] += (rng.uniform(0.1, 0.7) * placed[1])[..., None]
    if rng.random() < 0.3:
        strands = np.clip(np.abs(noise.whole(8.0) + 0.6 * noise.whole(40.0)) < 0.07, 0, 1).astype(np.float32)
        strands = cv2.GaussianBlur(strands, (0, 0), 1.6) * np.clip(noise.whole(40.0), 0, 1)
        density += (0.2 * strands)[..., None] * np.array(stain.cytoplasm, np.float32)


def _photograph(density: np.ndarray, stain: Stain, noise: NoiseBank, rng: np.random.Generator) -> np.ndarray:
    """Converts absorbance to an image: uneven light, focus, sensor noise, and often JPEG compression."""
    height, width = density.shape[:2]
    rows, columns = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    slope = rng.normal(0, 0.03, 2)
    light = 1 + slope[0] * rows + slope[1] * columns - rng.uniform(0, 0.06) * (rows**2 + columns**2)
    light = light + 0.012 * noise.whole(40.0)
    picture = np.array(stain.light, np.float32) * light[..., None] * np.exp(-density)
    # Scattered light keeps the darkest nuclei from being black.
    picture = 10 + picture * (245 / 255)
    picture = cv2.GaussianBlur(picture, (0, 0), 0.5 + min(height, width) / 512 * rng.gamma(2.0, 0.5))
    picture += rng.normal(0, rng.uniform(0.5, 2.5), picture.shape[:2]).astype(np.float32)[..., None]
    image = np.clip(np.round(picture), 0, 255).astype(np.uint8)
    if rng.random() < 0.6:
        _, packed = cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(70, 96))])
        image = np.asarray(cv2.imdecode(packed, cv2.IMREAD_COLOR))[:, :, ::-1].copy()
    return image
