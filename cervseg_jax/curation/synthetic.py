"""Synthetic images of Pap smears with exact outlines: clusters of nuclei, or fields of single cells.

Everything is a function of the seed.
"""

import cv2
import numpy as np

from cervseg_jax.annotations.outlines import enclosed_area
from cervseg_jax.choices import SceneKind
from cervseg_jax.curation.synthetic_groups import draw_groups
from cervseg_jax.curation.synthetic_layers import (
    Scene,
    Stain,
    add_debris,
    add_nucleus,
    develop,
    expose,
    soft_shape,
)
from cervseg_jax.curation.synthetic_layout import make_outline, place_nuclei
from cervseg_jax.curation.synthetic_noise import NoiseBank
from cervseg_jax.curation.synthetic_smear import draw_smear

STAINS: dict[str, Stain] = {
    "blue": Stain((240, 240, 244), (1.55, 1.45, 0.80), (0.62, 0.42, 0.20)),
    "purple": Stain((228, 224, 234), (1.30, 1.60, 0.85), (0.38, 0.46, 0.20)),
    "pink": Stain((236, 230, 238), (1.20, 1.75, 0.90), (0.22, 0.70, 0.34)),
    "teal": Stain((232, 236, 240), (1.65, 1.15, 0.80), (0.85, 0.30, 0.26)),
    "violet_haze": Stain((214, 212, 222), (1.10, 1.15, 0.62), (0.55, 0.34, 0.24)),
}
"""Looks of real slides: haematoxylin nuclei in cyanophilic (blue, teal) or eosinophilic (pink) cytoplasm."""


def draw_scene(*, shape: tuple[int, int], seed: int, index: int = 0, kind: SceneKind = "clusters") -> Scene:
    """Draws one field of view.

    Args:
      shape: height and width in pixels, at least 64.
      seed: seed of the dataset.
      index: index of the image in the dataset.
      kind: "clusters" of touching and overlapping nuclei, a "smear" of single cells of several kinds, with debris, or
        thick "groups" out of focus whose cytoplasm is nearly as dark as their nuclei.

    Returns:
      Image, outlines and the name of the stain.

    Raises:
      ValueError: if the image is too small to hold a cluster.
    """
    if min(shape) < 64:
        raise ValueError(f"draw_scene: shape must be at least 64x64, got {shape[0]}x{shape[1]}")
    return {"clusters": _draw_clusters, "smear": draw_smear, "groups": draw_groups}[kind](
        shape=shape, seed=seed, index=index
    )


def _draw_clusters(*, shape: tuple[int, int], seed: int, index: int) -> Scene:
    """Draws clusters of touching and overlapping nuclei, which are darker where they overlap."""
    rng = np.random.default_rng([seed, index])
    name = str(rng.choice(list(STAINS)))
    stain = _vary(STAINS[name], rng)
    noise = NoiseBank(shape, rng)
    outlines = place_nuclei(shape, rng)

    density = np.zeros((*shape, 3), np.float32)
    _add_cytoplasm(density, outlines, stain, noise, rng)
    add_debris(density, stain, noise, rng)
    _add_leucocytes(density, outlines, stain, noise, rng)
    for outline in outlines:
        add_nucleus(density, outline, stain, noise, rng)
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
        placed = soft_shape(body, density.shape[:2], rng.uniform(1.0, 0.25 * radius + 1.5))
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
        body = soft_shape(make_outline(center, 1.9 * radius, 1.1, 0, rng), (height, width), 1.2)
        if body is not None:
            density[body[0]] += (0.16 * body[1])[..., None] * np.array(stain.cytoplasm, np.float32)
        start = rng.uniform(0, 2 * np.pi)
        for lobe in range(int(rng.integers(2, 5))):
            angle = start + lobe * rng.uniform(1.4, 1.9)
            place = center + 0.75 * radius * np.array([np.cos(angle), np.sin(angle)])
            placed = soft_shape(make_outline(place, 0.6 * radius, 1.3, angle, rng), (height, width), 0.8)
            if placed is not None:
                window, coverage = placed
                grain = np.clip(1 + 0.15 * noise.read(1.0, window, rng), 0.4, 1.6)
                density[window] += (0.8 * coverage * grain)[..., None] * np.array(stain.nucleus, np.float32)


def _photograph(density: np.ndarray, stain: Stain, noise: NoiseBank, rng: np.random.Generator) -> np.ndarray:
    """Converts absorbance to an image: uneven light, focus, sensor noise, and often JPEG compression."""
    slope, falloff = rng.normal(0, 0.03, 2), rng.uniform(0, 0.06)
    picture = expose(density, np.array(stain.light, np.float32), noise, slope=slope, falloff=falloff)
    picture = cv2.GaussianBlur(picture, (0, 0), 0.5 + min(density.shape[:2]) / 512 * rng.gamma(2.0, 0.5))
    return develop(picture, rng, max_noise=2.5, min_quality=70)
