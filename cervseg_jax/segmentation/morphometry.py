"""What can be measured on single nuclei.

Areas, axes and centers are moments of the pixels; the definitions follow scikit-image's `regionprops` where it has the
same quantity. Lengths and areas are in pixels; `in_micrometers` adds columns in micrometers.
"""

from collections.abc import Mapping

import cv2
import numpy as np
from scipy.spatial import KDTree

from cervseg_jax.data.photometric import HED
from cervseg_jax.label_maps import STEPS, bounding_boxes, neighbors

GRAY_LEVELS = 32
"""Of the texture."""

Table = dict[str, np.ndarray]
"""One array per column, one row per nucleus in the order of the labels."""


def measure(
    labels: np.ndarray, image: np.ndarray, probs: np.ndarray | None = None, *, context: np.ndarray | None = None
) -> Table:
    """Measures every nucleus.

    Columns: `label`; `row`, `column` (centroid of pixel centers); `top`, `left`, `height`, `width` (bounding box);
    `area_px`; `equivalent_diameter_px` (of the disc of equal area); `perimeter_px` (Crofton, four directions);
    `major_axis_px`, `minor_axis_px` (of the ellipse with the same second moments); `eccentricity` and
    `orientation_degrees` (against the vertical, counter-clockwise) of that ellipse; `circularity` (4 pi area /
    perimeter squared); `solidity` (area / area of the convex hull of the pixels' corners); `intensity_mean`,
    `intensity_sd` (gray, 0..255); `optical_density_mean`, `optical_density_sd` (-log10 of the gray share);
    `haematoxylin_mean` (optical density of that dye by color deconvolution); `texture_entropy_bits`,
    `texture_contrast`, `texture_homogeneity` (32 gray levels, pairs of neighbors in eight directions);
    `num_touching` (nuclei that touch at a side or corner); `nearest_px` (distance to the nearest other centroid; NaN
    for a single nucleus); `touches_border` (of the image, 0 or 1); `confidence` (mean probability inside; only with
    `probs`).

    Args:
      labels: integer labels [h, w], 0 for background.
      image: uint8 [h, w, 3], RGB.
      probs: mask probabilities [h, w].
      context: labels of all nuclei of the window, of which those of `labels` are some under other numbers; what they
        touch is looked up there.

    Returns:
      The columns, in this order.

    Reference: Ruifrok and Johnston 2001, Anal Quant Cytol Histol 23(4) (deconvolution); Haralick et al. 1973,
      doi:10.1109/TSMC.1973.4309314 (texture).
    """
    rows, columns = np.nonzero(labels)
    found, number = np.unique(labels[rows, columns], return_inverse=True)
    count = len(found)
    if not count:
        nothing = np.zeros((1, 1), labels.dtype) + 1
        names = measure(nothing, np.zeros((1, 1, 3), np.uint8), None if probs is None else np.zeros((1, 1)))
        return {name: values[:0] for name, values in names.items()}

    def mean(values: np.ndarray) -> np.ndarray:
        return np.bincount(number, values, count) / area

    area = np.bincount(number, minlength=count).astype(np.float64)
    row, column = mean(rows), mean(columns)
    boxes = bounding_boxes(labels)
    top, left, bottom, right = boxes.T
    major, minor, angle = _axes(mean, rows - row[number], columns - column[number])
    perimeter, hull_area = _outline_measures(labels, found, boxes)
    height, width = labels.shape
    table: Table = {
        "label": found,
        "row": row,
        "column": column,
        "top": top,
        "left": left,
        "height": bottom - top,
        "width": right - left,
        "area_px": area.astype(np.int64),
        "equivalent_diameter_px": np.sqrt(4 * area / np.pi),
        "perimeter_px": perimeter,
        "major_axis_px": major,
        "minor_axis_px": minor,
        "eccentricity": np.sqrt(np.where(major > 0, 1 - np.square(minor / np.maximum(major, 1e-12)), 0)),
        "orientation_degrees": angle,
        "circularity": 4 * np.pi * area / np.square(perimeter),
        "solidity": area / hull_area,
    }
    levels = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    gray = levels[rows, columns].astype(np.float64)
    density = -np.log10(np.maximum(gray, 1) / 255)
    dyes = -np.log10(np.maximum(image[rows, columns], 1) / 255) @ np.linalg.inv(
        HED / np.linalg.norm(HED, axis=1, keepdims=True)
    )
    for name, values in (("intensity", gray), ("optical_density", density)):
        table[f"{name}_mean"] = mean(values)
        table[f"{name}_sd"] = np.sqrt(np.maximum(0, mean(np.square(values)) - np.square(mean(values))))
    table["haematoxylin_mean"] = mean(dyes[:, 0])
    table |= _texture(labels, found, levels)
    table["num_touching"] = _num_touching(labels, found, labels if context is None else context)
    table["nearest_px"] = nearest_distances(np.stack([row, column], axis=1))
    table["touches_border"] = ((top == 0) | (left == 0) | (bottom == height) | (right == width)).astype(np.int64)
    if probs is not None:
        table["confidence"] = mean(probs[rows, columns])
    return table


def in_micrometers(table: Mapping[str, np.ndarray], mpp: float) -> Table:
    """Adds a column in micrometers for each in pixels.

    Args:
      table: of `measure`.
      mpp: micrometers per pixel.

    Returns:
      All columns, those in micrometers behind the one that they come from.
    """
    out: Table = {}
    for name, values in table.items():
        out[name] = values
        if name.endswith("_px"):
            power = 2 if name == "area_px" else 1
            out[name.removesuffix("_px") + ("_um2" if power == 2 else "_um")] = values * mpp**power
    return out


def _axes(mean, down: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Axes in pixels and orientation in degrees of the ellipses with the same second moments."""
    rr, cc, rc = mean(down * down), mean(right * right), mean(down * right)
    middle, spread = (rr + cc) / 2, np.sqrt(np.square((rr - cc) / 2) + rc * rc)
    angle = np.degrees(0.5 * np.arctan2(2 * rc, rr - cc))
    return 4 * np.sqrt(middle + spread), 4 * np.sqrt(np.maximum(0, middle - spread)), angle


def _outline_measures(labels: np.ndarray, found: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Crofton perimeter and area of the convex hull of each nucleus.

    The perimeter is half the sum over four directions of pi / 4 times the crossings of parallel lines with the
    outline times the lines' distance (1, or 1 / sqrt 2 for diagonals).
    """
    perimeter, hull_area = np.zeros(len(found)), np.zeros(len(found))
    corners = np.array([(0, 0), (0, 1), (1, 0), (1, 1)])
    for number, (label, (top, left, bottom, right)) in enumerate(zip(found, boxes, strict=True)):
        inside = np.pad(labels[top:bottom, left:right] == label, 1)
        for step in STEPS:
            here, there = neighbors(inside, step)
            perimeter[number] += np.count_nonzero(here != there) * (np.sqrt(0.5) if all(step) else 1.0)
        # The hull of the ends of each row is the hull of all pixels.
        kept = np.argwhere(inside & ~(np.roll(inside, 1, axis=1) & np.roll(inside, -1, axis=1)))
        points = (kept[:, None] + corners).reshape(-1, 2).astype(np.int32)
        hull_area[number] = cv2.contourArea(cv2.convexHull(points))
    return perimeter * np.pi / 8, hull_area


def _texture(labels: np.ndarray, found: np.ndarray, gray: np.ndarray) -> Table:
    """Entropy of the gray levels; contrast and homogeneity of neighbors within the nucleus."""
    levels = (gray.astype(np.int64) * GRAY_LEVELS) // 256
    inside = labels > 0
    number = np.searchsorted(found, labels[inside])
    histogram = np.zeros((len(found), GRAY_LEVELS))
    np.add.at(histogram, (number, levels[inside]), 1)
    share = histogram / histogram.sum(axis=1, keepdims=True)
    entropy = -(share * np.log2(np.where(share > 0, share, 1))).sum(axis=1)
    pairs, contrast, homogeneity = (np.zeros(len(found)) for _ in range(3))
    for step in STEPS:
        here, there = neighbors(labels, step)
        same = (here == there) & (here > 0)
        owner = np.searchsorted(found, here[same])
        one, other = neighbors(levels, step)
        difference = np.square(one[same] - other[same])
        pairs += np.bincount(owner, minlength=len(found))
        contrast += np.bincount(owner, difference, len(found))
        homogeneity += np.bincount(owner, 1 / (1 + difference), len(found))
    pairs = np.maximum(pairs, 1)
    return {
        "texture_entropy_bits": entropy,
        "texture_contrast": contrast / pairs,
        "texture_homogeneity": homogeneity / pairs,
    }


def _num_touching(labels: np.ndarray, found: np.ndarray, context: np.ndarray) -> np.ndarray:
    """Counts the nuclei of `context` that touch each nucleus."""
    meetings = []
    for step in STEPS:
        (one, other), (here, there) = neighbors(labels, step), neighbors(context, step)
        differ = (here != there) & (here > 0) & (there > 0)
        meetings += [np.stack([one[differ], there[differ]], axis=1), np.stack([other[differ], here[differ]], axis=1)]
    pairs = np.unique(np.concatenate(meetings), axis=0)
    pairs = pairs[pairs[:, 0] > 0]
    return np.bincount(np.searchsorted(found, pairs[:, 0]), minlength=len(found))


def nearest_distances(centers: np.ndarray) -> np.ndarray:
    """Returns the distance from each point [n, 2] to the nearest other one; NaN for a single one."""
    if len(centers) < 2:
        return np.full(len(centers), np.nan)
    distances, _ = KDTree(centers).query(centers, k=2)
    return distances[:, 1]
