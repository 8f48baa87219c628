"""Drawn Pap-smear clusters with exact truth.

The picture is made as the microscope makes it: every layer absorbs light, absorbances (optical densities) add up
per color channel, and the light that is left reaches the camera. So overlapping nuclei get darker and cytoplasm
stays translucent. Everything is a function of the seed.
"""

from typing import NamedTuple

import cv2
import numpy as np

from cervseg_jax.annotations.outlines import Rings, enclosed_area, rasterize

NUM_CORNERS = 64
"""Corners of a nucleus' outline."""

MAX_HIDDEN = 0.4
"""Largest share of a nucleus that may be covered by nuclei on top of it."""


class Stain(NamedTuple):
    """Light and dyes of one slide; absorbances are per channel R, G, B."""

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
    """A drawn image and its truth."""

    image: np.ndarray
    """uint8 [h, w, 3], RGB."""
    outlines: list[Rings]
    """Of all nuclei at full extent, in drawing order: later lies on top."""
    stain: str


def draw_scene(*, shape: tuple[int, int], seed: int, index: int = 0) -> Scene:
    """Draws one field of view with clusters of touching and overlapping nuclei.

    Args:
      shape: height and width in pixels, at least 64.
      seed: seed of the dataset.
      index: number of the image in it.

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
    noise = _NoiseBank(shape, rng)
    outlines = _place_nuclei(shape, rng)

    density = np.zeros((*shape, 3), np.float32)
    _add_cytoplasm(density, outlines, stain, noise, rng)
    _add_debris(density, stain, noise, rng)
    _add_leucocytes(density, outlines, stain, noise, rng)
    for outline in outlines:
        _add_nucleus(density, outline, stain, noise, rng)
    return Scene(_photograph(density, stain, noise, rng), [[outline] for outline in outlines], name)


class _NoiseBank:
    """Smooth noise fields of the image's size, drawn once and read at random offsets: cheap texture."""

    def __init__(self, shape: tuple[int, int], rng: np.random.Generator) -> None:
        self._fields = {scale: _smooth_noise(shape, scale, rng) for scale in (1.0, 2.5, 8.0, 40.0)}

    def read(self, scale: float, window: tuple[slice, slice], rng: np.random.Generator) -> np.ndarray:
        """Returns noise of mean 0 and deviation 1 for a window, shifted so that objects do not share texture."""
        field = self._fields[scale]
        rows = _mirrored(window[0], field.shape[0], int(rng.integers(field.shape[0])))
        columns = _mirrored(window[1], field.shape[1], int(rng.integers(field.shape[1])))
        return field[np.ix_(rows, columns)]

    def whole(self, scale: float) -> np.ndarray:
        """Returns the whole field."""
        return self._fields[scale]


def _mirrored(window: slice, size: int, shift: int) -> np.ndarray:
    """Indices of a shifted window; beyond the last one they run backwards, so that no seam shows."""
    indices = (np.arange(window.start, window.stop) + shift) % (2 * size)
    return np.where(indices < size, indices, 2 * size - 1 - indices)


def _smooth_noise(shape: tuple[int, int], scale: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise smoothed over `scale` pixels; drawn coarsely and enlarged where that shows no difference."""
    step = max(1, int(scale / 3))
    coarse = rng.standard_normal((shape[0] // step + 8, shape[1] // step + 8), np.float32)
    coarse = cv2.GaussianBlur(coarse, (0, 0), scale / step)
    field = cv2.resize(coarse, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC)
    return (field - field.mean()) / (field.std() + 1e-6)


def _vary(stain: Stain, rng: np.random.Generator) -> Stain:
    """Changes a stain as much as two laboratories differ."""

    def around(values: tuple[float, float, float], spread: float, strength: float) -> tuple[float, float, float]:
        varied = np.array(values) * strength * np.exp(spread * rng.standard_normal(3))
        return (float(varied[0]), float(varied[1]), float(varied[2]))

    light = np.clip(np.array(stain.light) + rng.normal(0, 5, 3), 190, 250)
    return Stain(
        (float(light[0]), float(light[1]), float(light[2])),
        around(stain.nucleus, 0.06, rng.uniform(0.72, 1.1)),
        around(stain.cytoplasm, 0.10, rng.uniform(0.45, 1.15)),
    )


def _outline(
    center: np.ndarray, radius: float, elongation: float, angle: float, rng: np.random.Generator
) -> np.ndarray:
    """An ellipse with a few low-frequency dents, as corners [n, 2]."""
    theta = np.linspace(0, 2 * np.pi, NUM_CORNERS, endpoint=False)
    order = np.arange(2, 6)
    amplitude = rng.normal(0, 0.075, 4) / (order - 1)
    phase = rng.uniform(0, 2 * np.pi, 4)
    wobble = 1 + (amplitude[:, None] * np.cos(order[:, None] * theta + phase[:, None])).sum(axis=0)
    axes = radius * np.array([np.sqrt(elongation), 1 / np.sqrt(elongation)])
    local = wobble[:, None] * np.stack([np.cos(theta), np.sin(theta)], axis=1) * axes
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return center + local @ turn


def _place_nuclei(shape: tuple[int, int], rng: np.random.Generator) -> list[np.ndarray]:
    """Grows clusters nucleus by nucleus: each new one touches, overlaps or nearly touches one that is there."""
    height, width = shape
    base_radius = float(np.exp(rng.uniform(np.log(0.028), np.log(0.1)))) * min(shape)
    num_clusters = int(rng.integers(1, 4))
    max_cells = 0.30 * height * width / (np.pi * base_radius**2)
    per_cluster = max(3, int(min(60, max_cells * rng.uniform(0.35, 0.9)) / num_clusters))
    crowding = rng.uniform(0.72, 1.12)
    main_angle = rng.uniform(0, np.pi)
    labels = np.zeros(shape, np.int32)
    outlines: list[np.ndarray] = []

    for _ in range(num_clusters):
        centers = [rng.uniform(0.22, 0.78, 2) * (width, height)]
        radii: list[float] = []
        for _attempt in range(3 * per_cluster):
            radius = base_radius * float(np.exp(rng.normal(0, 0.2)))
            if radii:
                parent = int(rng.integers(len(radii)))
                direction = rng.uniform(0, 2 * np.pi)
                distance = (radius + radii[parent]) * crowding * rng.uniform(0.9, 1.25)
                center = centers[parent] + distance * np.array([np.cos(direction), np.sin(direction)])
            else:
                center = centers[0]
            angle = main_angle + rng.normal(0, 0.6)
            outline = _outline(center, radius, rng.uniform(1.0, 1.9), angle, rng)
            if not _fits(outline, labels, outlines):
                continue
            top, left, inside = rasterize([outline], shape=shape)
            outlines.append(outline)
            labels[top : top + inside.shape[0], left : left + inside.shape[1]][inside] = len(outlines)
            centers = [*centers, center] if radii else [center]
            radii.append(radius)
            if len(radii) >= per_cluster:
                break
    return outlines


def _fits(outline: np.ndarray, labels: np.ndarray, outlines: list[np.ndarray]) -> bool:
    """Whether a nucleus lies mostly inside the image and hides no other one too far."""
    top, left, inside = rasterize([outline], shape=labels.shape)
    if inside.sum() < 0.6 * enclosed_area([outline]):
        return False
    covered = labels[top : top + inside.shape[0], left : left + inside.shape[1]][inside]
    numbers, pixels = np.unique(covered[covered > 0], return_counts=True)
    if pixels.sum() > MAX_HIDDEN * inside.sum():
        return False
    return all(
        (labels == number).sum() - hidden > (1 - MAX_HIDDEN) * enclosed_area([outlines[number - 1]])
        for number, hidden in zip(numbers, pixels, strict=True)
    )


def _soft_shape(
    outline: np.ndarray, shape: tuple[int, int], softness_px: float
) -> tuple[tuple[slice, slice], np.ndarray] | None:
    """An outline's coverage in [0, 1] with a blurred edge, within a window of the image; None if outside."""
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
    density: np.ndarray, outline: np.ndarray, stain: Stain, noise: _NoiseBank, rng: np.random.Generator
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
    density: np.ndarray, outlines: list[np.ndarray], stain: Stain, noise: _NoiseBank, rng: np.random.Generator
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
        body = _outline(
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
    density: np.ndarray, outlines: list[np.ndarray], stain: Stain, noise: _NoiseBank, rng: np.random.Generator
) -> None:
    """Adds neutrophils as distractors: small cells with two to four dark lobes; no nuclei in the truth."""
    if not outlines:
        return
    height, width = density.shape[:2]
    radius = 0.42 * float(np.median([np.sqrt(enclosed_area([outline]) / np.pi) for outline in outlines]))
    centers = np.array([outline.mean(axis=0) for outline in outlines])
    for _ in range(int(rng.integers(0, 8))):
        center = rng.uniform(0, 1, 2) * (width, height)
        if np.linalg.norm(centers - center, axis=1).min() < 4.5 * radius:
            continue
        body = _soft_shape(_outline(center, 1.9 * radius, 1.1, 0, rng), (height, width), 1.2)
        if body is not None:
            density[body[0]] += (0.16 * body[1])[..., None] * np.array(stain.cytoplasm, np.float32)
        start = rng.uniform(0, 2 * np.pi)
        for lobe in range(int(rng.integers(2, 5))):
            angle = start + lobe * rng.uniform(1.4, 1.9)
            place = center + 0.75 * radius * np.array([np.cos(angle), np.sin(angle)])
            placed = _soft_shape(_outline(place, 0.6 * radius, 1.3, angle, rng), (height, width), 0.8)
            if placed is not None:
                window, coverage = placed
                grain = np.clip(1 + 0.15 * noise.read(1.0, window, rng), 0.4, 1.6)
                density[window] += (0.8 * coverage * grain)[..., None] * np.array(stain.nucleus, np.float32)


def _add_debris(density: np.ndarray, stain: Stain, noise: _NoiseBank, rng: np.random.Generator) -> None:
    """Adds specks, and faint strands of mucus."""
    height, width = density.shape[:2]
    for _ in range(int(rng.integers(0, 14))):
        speck = _outline(rng.uniform(0, 1, 2) * (width, height), rng.uniform(0.8, 3.0), 1.5, rng.uniform(0, 3), rng)
        placed = _soft_shape(speck, (height, width), rng.uniform(0.4, 1.2))
        if placed is not None:
            density[placed[0]] += (rng.uniform(0.1, 0.7) * placed[1])[..., None]
    if rng.random() < 0.3:
        strands = np.clip(np.abs(noise.whole(8.0) + 0.6 * noise.whole(40.0)) < 0.07, 0, 1).astype(np.float32)
        strands = cv2.GaussianBlur(strands, (0, 0), 1.6) * np.clip(noise.whole(40.0), 0, 1)
        density += (0.2 * strands)[..., None] * np.array(stain.cytoplasm, np.float32)


def _photograph(density: np.ndarray, stain: Stain, noise: _NoiseBank, rng: np.random.Generator) -> np.ndarray:
    """Turns absorbance into a picture: uneven light, focus, sensor noise, and often JPEG compression."""
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
