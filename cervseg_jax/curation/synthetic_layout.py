"""Outlines of clustered nuclei for synthetic images."""

import numpy as np

from cervseg_jax.annotations.outlines import enclosed_area, rasterize

NUM_CORNERS = 64
"""Corners of a nucleus' outline."""

MAX_HIDDEN = 0.4
"""Largest share of a nucleus that may be covered by nuclei on top of it."""


def make_outline(
    center: np.ndarray, radius: float, elongation: float, angle: float, rng: np.random.Generator
) -> np.ndarray:
    """Returns an ellipse with a few low-frequency dents, as corners [n, 2]."""
    theta = np.linspace(0, 2 * np.pi, NUM_CORNERS, endpoint=False)
    order = np.arange(2, 6)
    amplitude = rng.normal(0, 0.075, 4) / (order - 1)
    phase = rng.uniform(0, 2 * np.pi, 4)
    wobble = 1 + (amplitude[:, None] * np.cos(order[:, None] * theta + phase[:, None])).sum(axis=0)
    axes = radius * np.array([np.sqrt(elongation), 1 / np.sqrt(elongation)])
    local = wobble[:, None] * np.stack([np.cos(theta), np.sin(theta)], axis=1) * axes
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return center + local @ turn


def make_polygon(center: np.ndarray, radius: float, rng: np.random.Generator) -> np.ndarray:
    """Returns the outline of a flat cell: five to nine rounded corners, as corners [n, 2]."""
    count = int(rng.integers(5, 10))
    angles = (np.arange(count) + rng.uniform(-0.3, 0.3, count)) * 2 * np.pi / count + rng.uniform(0, 2 * np.pi)
    radii, stretch, turn = radius * rng.uniform(0.65, 1.15, count), np.sqrt(rng.uniform(1, 1.6)), rng.uniform(0, np.pi)
    points = np.stack([np.cos(angles) * radii * stretch, np.sin(angles) * radii / stretch], axis=1)
    points = points @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    for _ in range(3):  # corner cutting: Chaikin 1974
        following = np.roll(points, -1, axis=0)
        points = np.stack([0.8 * points + 0.2 * following, 0.2 * points + 0.8 * following], axis=1).reshape(-1, 2)
    return center + points


def place_nuclei(
    shape: tuple[int, int], rng: np.random.Generator, *, spacing: tuple[float, float] = (0.72, 1.12)
) -> list[np.ndarray]:
    """Grows clusters nucleus by nucleus: each one touches, overlaps or nearly touches an earlier one.

    Args:
      shape: height and width.
      rng: source of chance.
      spacing: range of the typical distance of neighbors, in sums of their radii.

    Returns:
      The outlines, corners [n, 2] each.
    """
    height, width = shape
    base_radius = float(np.exp(rng.uniform(np.log(0.028), np.log(0.1)))) * min(shape)
    num_clusters = int(rng.integers(1, 4))
    max_cells = 0.30 * height * width / (np.pi * base_radius**2)
    per_cluster = max(3, int(min(60, max_cells * rng.uniform(0.35, 0.9)) / num_clusters))
    crowding = rng.uniform(*spacing)
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
            outline = make_outline(center, radius, rng.uniform(1.0, 1.9), angle, rng)
            if not add_outline(outline, labels, outlines):
                continue
            centers = [*centers, center] if radii else [center]
            radii.append(radius)
            if len(radii) >= per_cluster:
                break
    return outlines


def add_outline(outline: np.ndarray, labels: np.ndarray, outlines: list[np.ndarray]) -> bool:
    """Adds a nucleus on top of the others if it lies mostly inside the image and hides little of any other one.

    Args:
      outline: corners [n, 2].
      labels: numbers of the uppermost nuclei, int32 [h, w]; changed.
      outlines: those of all nuclei; changed.

    Returns:
      Whether it was added.
    """
    top, left, inside = rasterize([outline], shape=labels.shape)
    if inside.sum() < 0.6 * enclosed_area([outline]):
        return False
    window = labels[top : top + inside.shape[0], left : left + inside.shape[1]]
    hidden_labels, pixels = np.unique(window[inside & (window > 0)], return_counts=True)
    if pixels.sum() > MAX_HIDDEN * inside.sum():
        return False
    for label, hidden in zip(hidden_labels, pixels, strict=True):
        if (labels == label).sum() - hidden <= (1 - MAX_HIDDEN) * enclosed_area([outlines[label - 1]]):
            return False
    outlines.append(outline)
    window[inside] = len(outlines)
    return True
