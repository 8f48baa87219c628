"""What all cells of a synthetic smear have in common: light, dyes, size of nuclei, and how crowded they are."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cervseg_jax.curation.synthetic_layers import Stain

LIGHTS = ((250, 250, 252), (252, 226, 250), (228, 224, 218), (214, 216, 226), (240, 236, 226))
"""Colors of empty slides, 0..255."""
NUCLEUS_DYES = ((1.50, 1.40, 0.75), (1.25, 1.50, 0.80), (1.60, 1.25, 0.75), (1.35, 1.35, 1.05))
"""Absorbances of haematoxylin, R, G, B."""
CYTOPLASM_DYES = (
    (0.10, 0.60, 0.25),
    (0.06, 0.38, 0.60),
    (0.65, 0.20, 0.22),
    (0.55, 0.38, 0.14),
    (0.35, 0.48, 0.20),
    (0.12, 0.42, 0.12),
)
"""Absorbances of eosin, orange G, light green, blue, purple, pale pink."""
RADIUS_PX = (4.5, 15.0)
"""Range of the typical nucleus radius in fields of `FIELD_PX`."""
FIELD_PX = 384
KINDS = ("squamous", "round", "naked", "anucleate", "leucocyte")
KIND_WEIGHTS = (1.2, 0.8, 0.4, 0.4, 0.5)
"""Concentrations of the kinds' shares, which differ between fields."""


class Slide(NamedTuple):
    """What all cells of a field have in common."""

    light: np.ndarray
    """Color of the empty slide, 0..255, R, G, B."""
    nucleus: np.ndarray
    """Absorbance of haematoxylin."""
    cytoplasms: list[np.ndarray]
    """Absorbances of one to three kinds of cytoplasm."""
    radius: float
    """Typical radius of nuclei, in pixels."""
    reach: float
    """Radius of squamous cells, in radii of nuclei."""
    shares: np.ndarray
    """Share of each of `KINDS`."""
    coverage: float
    """Share of the field that cells cover, where they overlap counted twice."""


def make_slide(shape: tuple[int, int], rng: np.random.Generator) -> Slide:
    """Draws the properties of a field of height and width `shape`."""
    depth = rng.uniform(0.4, 1.3)
    chosen = rng.permutation(len(CYTOPLASM_DYES))[: int(rng.integers(1, 4))]
    return Slide(
        light=np.clip(np.array(LIGHTS[rng.integers(len(LIGHTS))]) + rng.normal(0, 4, 3), 170, 255),
        nucleus=_varied(NUCLEUS_DYES[rng.integers(len(NUCLEUS_DYES))], 0.06, rng) * rng.uniform(0.6, 1.15),
        cytoplasms=[_varied(CYTOPLASM_DYES[index], 0.15, rng) * depth for index in chosen],
        radius=float(np.exp(rng.uniform(*np.log(RADIUS_PX)))) * min(shape) / FIELD_PX,
        reach=rng.uniform(3.5, 8.0),
        shares=rng.dirichlet(KIND_WEIGHTS),
        coverage=rng.uniform(0.08, 0.9),
    )


def _varied(dye: Sequence[float], spread: float, rng: np.random.Generator) -> np.ndarray:
    return np.array(dye) * np.exp(spread * rng.standard_normal(3))


def stain_of(slide: Slide, nucleus: np.ndarray) -> Stain:
    """Returns the stain of a field with the absorbance of one nucleus."""
    light, dye, cytoplasm = (tuple(values.tolist()) for values in (slide.light, nucleus, slide.cytoplasms[0]))
    return Stain(light, dye, cytoplasm)
