"""Synthetic fields of Pap smears: single cells of several kinds among debris, with exact outlines of their nuclei.

Squamous cells are large and flat, with folds and granules; round ones have a dense cytoplasm, which may be as dark as a
pale nucleus. Colors, light, size of nuclei, crowding and focus differ from field to field more than between
laboratories, so that a network learns what all of them have in common.
"""

from typing import NamedTuple

import cv2
import numpy as np

from cervseg_jax.curation.synthetic_debris import add_bacteria, add_red_cells, add_specks
from cervseg_jax.curation.synthetic_layers import (
    Scene,
    add_debris,
    add_nucleus,
    develop,
    expose,
    soft_shape,
)
from cervseg_jax.curation.synthetic_layout import add_outline, make_outline, make_polygon
from cervseg_jax.curation.synthetic_noise import NoiseBank
from cervseg_jax.curation.synthetic_slide import KINDS, Slide, make_slide, stain_of

MAX_CELLS = 150
_SUBPIXELS = 3
"""Bits of the fraction in OpenCV's coordinates."""


class _Cell(NamedTuple):
    """One cell."""

    kind: str
    center: np.ndarray
    radius: float
    """Radius of the nucleus, in pixels."""
    body_radius: float
    """Radius of the cytoplasm, in pixels; 0 without one."""
    dye: np.ndarray
    thickness: float
    blur_px: float


def draw_smear(*, shape: tuple[int, int], seed: int, index: int) -> Scene:
    """Draws one field of a smear.

    Args:
      shape: height and width in pixels, at least 64.
      seed: seed of the dataset.
      index: index of the image in the dataset.

    Returns:
      Image and outlines of the nuclei, possibly none. Those of leucocytes are annotated, as most laboratories do.
    """
    rng = np.random.default_rng([seed, index])
    slide = make_slide(shape, rng)
    noise = NoiseBank(shape, rng)
    density = np.zeros((*shape, 3), np.float32)
    cells = _place_cells(shape, slide, rng)
    for cell in cells:
        if cell.body_radius:
            _add_body(density, cell, slide, noise, rng)
    labels, outlines = np.zeros(shape, np.int32), list[np.ndarray]()
    for cell in cells:
        if cell.kind != "anucleate":
            add_outline(_nucleus_outline(cell, rng), labels, outlines)
    stain = stain_of(slide, slide.nucleus)
    add_bacteria(density, slide, noise, rng)
    add_debris(density, stain, noise, rng)
    add_specks(density, slide, rng)
    add_red_cells(density, slide, rng)
    for outline in outlines:
        add_nucleus(density, outline, stain_of(slide, slide.nucleus * rng.uniform(0.75, 1.2)), noise, rng)
    return Scene(_photograph(density, slide, noise, rng), [[outline] for outline in outlines], "smear")


def _place_cells(shape: tuple[int, int], slide: Slide, rng: np.random.Generator) -> list[_Cell]:
    """Places cells until the field is as crowded as it shall be; nuclei may touch, but hardly overlap."""
    height, width = shape
    cells: list[_Cell] = []
    covered = 0.0
    for _ in range(MAX_CELLS):
        if covered > slide.coverage * height * width:
            break
        cell = _make_cell(rng.uniform(-0.05, 1.05, 2) * (width, height), slide, rng)
        others = [other for other in cells if "anucleate" not in (cell.kind, other.kind)]
        if any(np.hypot(*(cell.center - other.center)) < 0.95 * (cell.radius + other.radius) for other in others):
            continue
        cells.append(cell)
        covered += 0.8 * np.pi * max(cell.body_radius, cell.radius) ** 2
    return cells


def _make_cell(center: np.ndarray, slide: Slide, rng: np.random.Generator) -> _Cell:
    kind = KINDS[int(rng.choice(len(KINDS), p=slide.shares))]
    radius = slide.radius * float(np.exp(rng.normal(0, 0.2)))
    body_radius, thickness = 0.0, 0.0
    if kind in ("squamous", "anucleate"):
        radius *= rng.uniform(0.7, 1.0)
        body_radius, thickness = slide.radius * slide.reach * rng.uniform(0.7, 1.3), rng.uniform(0.25, 1.0)
    elif kind == "round":
        body_radius, thickness = radius * rng.uniform(1.4, 2.6), rng.uniform(0.5, 1.9)
    elif kind == "leucocyte":
        radius *= rng.uniform(0.5, 0.9)
        body_radius, thickness = radius * rng.uniform(1.3, 1.8), rng.uniform(0.0, 0.3)
    dye = slide.cytoplasms[rng.integers(len(slide.cytoplasms))]
    return _Cell(kind, center, radius, body_radius, dye, thickness, slide.radius * rng.gamma(1.5, 0.06))


def _nucleus_outline(cell: _Cell, rng: np.random.Generator) -> np.ndarray:
    center = cell.center + rng.normal(0, 0.12 * max(cell.body_radius - cell.radius, 0), 2)
    outline = make_outline(center, cell.radius, rng.uniform(1, 1.7), rng.uniform(0, np.pi), rng)
    if cell.kind != "leucocyte":
        return outline
    # Two or three lobes.
    angles = np.arctan2(*(outline - center).T[::-1])
    lobes = 1 + rng.uniform(0.1, 0.3) * np.cos(int(rng.integers(2, 4)) * angles + rng.uniform(0, 2 * np.pi))
    return center + (outline - center) * lobes[:, None]


def _add_body(density: np.ndarray, cell: _Cell, slide: Slide, noise: NoiseBank, rng: np.random.Generator) -> None:
    """Adds cytoplasm: uneven, sometimes with a dark rim, a halo around the nucleus, folds and granules."""
    if cell.kind in ("round", "leucocyte"):
        outline = make_outline(cell.center, cell.body_radius, rng.uniform(1, 1.4), rng.uniform(0, np.pi), rng)
    else:
        outline = make_polygon(cell.center, cell.body_radius, rng)
    placed = soft_shape(outline, density.shape[:2], max(0.5, cell.blur_px + rng.uniform(0.3, 1.2)))
    if placed is None:
        return
    window, coverage = placed
    texture = 1 + sum(
        rng.uniform(0, most) * noise.read(scale, window, rng) for scale, most in ((8.0, 0.3), (2.5, 0.2), (1.0, 0.1))
    )
    rim = coverage - cv2.GaussianBlur(coverage, (0, 0), max(1.0, 0.08 * cell.body_radius))
    layer = coverage * np.clip(texture + rng.gamma(1.0, 1.0) * np.clip(rim, 0, 1), 0.1, 4) * cell.thickness
    if rng.random() < 0.25:
        rows, columns = np.mgrid[window]
        squared = (columns - cell.center[0]) ** 2 + (rows - cell.center[1]) ** 2
        layer *= 1 - rng.uniform(0.3, 0.8) * np.exp(-squared / (2 * (cell.radius * rng.uniform(1.2, 1.8)) ** 2))
    origin = np.array((window[1].start, window[0].start))
    if cell.kind in ("squamous", "anucleate") and rng.random() < 0.5:
        for _ in range(int(rng.integers(1, 5))):
            layer += coverage * _fold(cell, coverage.shape, origin, slide.radius, rng)
    density[window] += layer[..., None] * cell.dye.astype(np.float32)
    if rng.random() < 0.3:
        dye = slide.nucleus if rng.random() < 0.5 else 2 * cell.dye
        density[window] += (coverage * _granules(coverage.shape, slide.radius, rng))[..., None] * dye.astype(np.float32)


def _fold(
    cell: _Cell, shape: tuple[int, ...], origin: np.ndarray, nucleus_radius: float, rng: np.random.Generator
) -> np.ndarray:
    """Returns a dark, slightly bent line across a cell, float32 of `shape`."""
    middle, angle = cell.center + rng.normal(0, 0.45 * cell.body_radius, 2) - origin, rng.uniform(0, 2 * np.pi)
    along = cell.body_radius * rng.uniform(0.3, 1.0) * np.linspace(-1, 1, 12)
    across = rng.normal(0, 0.25) * along**2 / cell.body_radius
    direction = np.array([np.cos(angle), np.sin(angle)])
    line = middle + along[:, None] * direction + across[:, None] * np.array([-direction[1], direction[0]])
    drawn = np.zeros(shape, np.float32)
    corners = np.round(line * 2**_SUBPIXELS).astype(np.int32)
    cv2.polylines(drawn, [corners], False, 1.0, int(rng.integers(1, 4)), cv2.LINE_8, _SUBPIXELS)
    return cv2.GaussianBlur(drawn, (0, 0), rng.uniform(0.7, 0.25 * nucleus_radius + 0.8)) * rng.uniform(0.4, 1.6)


def _granules(shape: tuple[int, ...], nucleus_radius: float, rng: np.random.Generator) -> np.ndarray:
    """Returns small dark specks, float32 of `shape`."""
    drawn = np.zeros(shape, np.float32)
    for place in rng.uniform(0, 1, (int(rng.integers(10, 90)), 2)) * (shape[1], shape[0]):
        radius = 0.5 + nucleus_radius * rng.uniform(0.05, 0.16)
        at = np.round(place * 2**_SUBPIXELS).astype(int).tolist()
        cv2.circle(drawn, at, int(radius * 2**_SUBPIXELS), 1.0, -1, cv2.LINE_8, _SUBPIXELS)
    return cv2.GaussianBlur(drawn, (0, 0), 0.7) * rng.uniform(0.15, 0.6)


def _photograph(density: np.ndarray, slide: Slide, noise: NoiseBank, rng: np.random.Generator) -> np.ndarray:
    """Converts absorbance to an image: uneven light, focus, sometimes a camera's contrast, noise, often JPEG."""
    picture = expose(density, slide.light.astype(np.float32), noise, slope=rng.normal(0, 0.03, 2))
    picture = cv2.GaussianBlur(picture, (0, 0), 0.4 + slide.radius * rng.gamma(1.5, 0.06))
    if rng.random() < 0.3:
        picture = 128 + (picture - 128) * rng.uniform(1.1, 1.5) + rng.uniform(0, 25)
    return develop(picture, rng, max_noise=3.0, min_quality=60)
