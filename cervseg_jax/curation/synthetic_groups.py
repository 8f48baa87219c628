"""Synthetic hyperchromatic crowded groups: thick clusters out of focus, with cytoplasm nearly as dark as the nuclei.

In four real groups the median absorbance of cytoplasm beside nuclei was 0.40 to 0.74 times that of nuclei, in nearly
the same color.
"""

import cv2
import numpy as np

from cervseg_jax.annotations.outlines import enclosed_area
from cervseg_jax.curation.synthetic_layers import Scene, Stain, add_debris, add_nucleus, develop, expose, soft_shape
from cervseg_jax.curation.synthetic_layout import make_outline, place_nuclei
from cervseg_jax.curation.synthetic_noise import NoiseBank
from cervseg_jax.curation.synthetic_slide import CYTOPLASM_DYES, LIGHTS, NUCLEUS_DYES

DENSITY = (1.2, 2.5)
"""Range of the absorbance of nuclei and cytoplasm together, mean of the channels."""
CYTOPLASM_SHARE = (0.3, 0.8)
"""Range of the cytoplasm's share of it."""
REACH = (1.3, 2.4)
"""Range of the radius of cells, in radii of their nuclei."""
BLUR = (0.02, 0.12)
"""Range of the blur, in diameters of nuclei."""


def draw_groups(*, shape: tuple[int, int], seed: int, index: int) -> Scene:
    """Draws one field with hyperchromatic crowded groups.

    Args:
      shape: height and width in pixels, at least 64.
      seed: seed of the dataset.
      index: index of the image in the dataset.

    Returns:
      Image and outlines of the nuclei.
    """
    rng = np.random.default_rng([seed, index])
    stain = _dark_stain(rng)
    noise = NoiseBank(shape, rng)
    outlines = place_nuclei(shape, rng, spacing=(1.0, 1.5))
    density = np.zeros((*shape, 3), np.float32)
    add_debris(density, stain, noise, rng)
    _add_sheet(density, outlines, stain, noise, rng)
    for outline in outlines:
        add_nucleus(density, outline, stain, noise, rng)
    slope, falloff = rng.normal(0, 0.03, 2), rng.uniform(0, 0.06)
    picture = expose(density, np.array(stain.light, np.float32), noise, slope=slope, falloff=falloff)
    diameter = 2 * float(np.median([np.sqrt(enclosed_area([outline]) / np.pi) for outline in outlines]))
    picture = cv2.GaussianBlur(picture, (0, 0), max(0.5, rng.uniform(*BLUR) * diameter))
    return Scene(develop(picture, rng, max_noise=2.5, min_quality=70), [[outline] for outline in outlines], "dark")


def _dark_stain(rng: np.random.Generator) -> Stain:
    """Returns a stain whose cytoplasm has nearly the color of its nuclei."""
    nucleus = np.array(NUCLEUS_DYES[rng.integers(len(NUCLEUS_DYES))])
    tint = np.array(CYTOPLASM_DYES[rng.integers(len(CYTOPLASM_DYES))])
    nucleus, tint = nucleus / nucleus.mean(), tint / tint.mean()
    total, share, mix = rng.uniform(*DENSITY), rng.uniform(*CYTOPLASM_SHARE), rng.uniform(0, 0.4)
    cytoplasm = total * share * ((1 - mix) * nucleus + mix * tint)
    light = np.clip(np.array(LIGHTS[rng.integers(len(LIGHTS))]) + rng.normal(0, 4, 3), 170, 255)
    triples = [tuple(values.tolist()) for values in (light, total * (1 - share) * nucleus, cytoplasm)]
    return Stain(*triples)


def _add_sheet(
    density: np.ndarray, outlines: list[np.ndarray], stain: Stain, noise: NoiseBank, rng: np.random.Generator
) -> None:
    """Adds the cytoplasm of all cells: absorbance grows where cells lie upon each other, up to a limit."""
    reach, passed = rng.uniform(*REACH), np.ones(density.shape[:2], np.float32)
    for outline in outlines:
        radius = np.sqrt(enclosed_area([outline]) / np.pi)
        center = outline.mean(axis=0) + rng.normal(0, 0.25 * radius, 2)
        extent = radius * reach * rng.uniform(0.8, 1.25)
        body = make_outline(center, extent, rng.uniform(1, 1.8), rng.uniform(0, np.pi), rng)
        placed = soft_shape(body, density.shape[:2], rng.uniform(0.8, 0.15 * radius + 1.0))
        if placed is not None:
            passed[placed[0]] *= 1 - rng.uniform(0.6, 0.95) * placed[1]
    whole = (slice(0, density.shape[0]), slice(0, density.shape[1]))
    thickness = np.clip(1 + 0.12 * noise.read(8.0, whole, rng) + 0.05 * noise.read(1.0, whole, rng), 0.3, 1.7)
    density += ((1 - passed) * thickness)[..., None] * np.array(stain.cytoplasm, np.float32)
