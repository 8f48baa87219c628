"""What lies between the cells of a synthetic smear: bacteria, mucus, fragments, red cells."""

import cv2
import numpy as np

from cervseg_jax.curation.synthetic_layers import soft_shape
from cervseg_jax.curation.synthetic_layout import make_outline, make_polygon
from cervseg_jax.curation.synthetic_noise import NoiseBank
from cervseg_jax.curation.synthetic_slide import Slide

RED_CELL_DYE = (0.06, 0.35, 0.30)


def add_bacteria(density: np.ndarray, slide: Slide, noise: NoiseBank, rng: np.random.Generator) -> None:
    """Adds mats of bacteria or mucus to many fields: cloudy or granular, pale or nearly as dark as nuclei."""
    if rng.random() > 0.6:
        return
    place = np.clip(noise.whole(40.0) * rng.choice((-1, 1)) - rng.uniform(0.2, 1.2), 0, 1)
    if rng.random() < 0.6:
        coarse, fine = rng.uniform(0.1, 0.5, 2)
        grains = np.clip(0.6 + coarse * noise.whole(8.0) + fine * noise.whole(2.5), 0, 1.5)
    else:
        grains = np.clip(noise.whole(2.5) - rng.uniform(-0.3, 0.6), 0, 1)
    grains = cv2.GaussianBlur(place * grains, (0, 0), 0.3 + slide.radius * rng.gamma(1.5, 0.06))
    dye = slide.cytoplasms[rng.integers(len(slide.cytoplasms))] + rng.uniform(0.0, 0.5) * slide.nucleus
    density += (rng.uniform(0.2, 0.9) * grains)[..., None] * dye.astype(np.float32)


def add_specks(density: np.ndarray, slide: Slide, rng: np.random.Generator) -> None:
    """Adds fragments, smaller than nuclei or paler and irregular, in and out of focus, to many fields."""
    height, width = density.shape[:2]
    if rng.random() > 0.6:
        return
    for _ in range(int(rng.integers(3, 40))):
        center = rng.uniform(0, 1, 2) * (width, height)
        if rng.random() < 0.7:
            outline = make_outline(
                center, slide.radius * rng.uniform(0.1, 0.4), rng.uniform(1, 2.5), rng.uniform(0, 3), rng
            )
            dye = slide.nucleus * rng.uniform(0.2, 1.0)
        else:
            outline = make_polygon(center, slide.radius * rng.uniform(0.4, 2.0), rng)
            dye = slide.cytoplasms[rng.integers(len(slide.cytoplasms))] * rng.uniform(0.2, 0.8)
        placed = soft_shape(outline, (height, width), 0.4 + slide.radius * rng.gamma(1.5, 0.08))
        if placed is not None:
            density[placed[0]] += placed[1][..., None] * dye.astype(np.float32)


def add_red_cells(density: np.ndarray, slide: Slide, rng: np.random.Generator) -> None:
    """Adds pale erythrocytes, thinner in the middle, to some fields."""
    height, width = density.shape[:2]
    if rng.random() > 0.25:
        return
    for _ in range(int(rng.integers(5, 40))):
        center, radius = rng.uniform(0, 1, 2) * (width, height), slide.radius * rng.uniform(0.5, 0.8)
        placed = soft_shape(make_outline(center, radius, 1.1, 0, rng), (height, width), 0.8)
        if placed is not None:
            window, coverage = placed
            layer = coverage - 0.5 * cv2.GaussianBlur(coverage, (0, 0), 0.25 * slide.radius)
            density[window] += (0.5 * layer)[..., None] * np.array(RED_CELL_DYE, np.float32)
