"""Morphometry: shape, intensity and texture of single nuclei.

Definitions follow scikit-image's `regionprops` where it has the same quantity. Lengths and areas are in pixels;
`in_micrometers` adds columns in micrometers. `COLUMNS` lists all measurements.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, Integer, Real, Shaped, UInt8
from scipy.spatial import KDTree

from cervseg_jax.data.photometric import HED
from cervseg_jax.label_maps import STEPS, bounding_boxes, distinct, neighbors
from cervseg_jax.typing import typechecked

GRAY_LEVELS = 32
"""Gray levels of the co-occurrence matrix."""

Table = dict[str, Shaped[np.ndarray, " nuclei"]]
"""One array per column, one row per nucleus in the order of the labels."""

Mean = Callable[[Real[np.ndarray, " pixels"]], Float[np.ndarray, " nuclei"]]
"""From the values of all pixels of nuclei to the mean of each nucleus."""


class Column(NamedTuple):
    """A measurement."""

    unit: str
    description: str
    dtype: type = np.float64


COLUMNS: Mapping[str, Column] = {
    "label": Column("", "value of the nucleus in the label map", np.int64),
    "row": Column("px", "centroid, mean of the pixel centers; the center of the first pixel is 0"),
    "column": Column("px", "likewise"),
    "top": Column("px", "first row of the bounding box", np.int64),
    "left": Column("px", "its first column", np.int64),
    "height": Column("px", "rows of the bounding box", np.int64),
    "width": Column("px", "its columns", np.int64),
    "area_px": Column("px^2", "number of pixels", np.int64),
    "equivalent_diameter_px": Column("px", "diameter of the disc of equal area"),
    "perimeter_px": Column("px", "Crofton perimeter from four directions"),
    "major_axis_px": Column("px", "major axis of the ellipse with the same second moments"),
    "minor_axis_px": Column("px", "its minor axis"),
    "eccentricity": Column("", "eccentricity of this ellipse, 0 for a disc"),
    "orientation_degrees": Column("degrees", "angle from the vertical to its major axis, counter-clockwise"),
    "circularity": Column("", "4 pi area / perimeter squared, 1 for a disc"),
    "solidity": Column("", "area / area of the convex hull of the pixels' corners"),
    "intensity_mean": Column("0..255", "mean gray value"),
    "intensity_sd": Column("0..255", "standard deviation of the gray values"),
    "optical_density_mean": Column("", "mean of -log10(gray / 255)"),
    "optical_density_sd": Column("", "its standard deviation"),
    "haematoxylin_mean": Column("", "mean optical density of haematoxylin by color deconvolution"),
    "texture_entropy_bits": Column("bits", "entropy of the histogram of 32 gray levels"),
    "texture_contrast": Column("", "mean squared difference of the levels of neighbors, in eight directions"),
    "texture_homogeneity": Column("", "mean of 1 / (1 + squared difference) of the levels of neighbors"),
    "num_touching": Column("", "nuclei that touch at a side or corner", np.int64),
    "nearest_px": Column("px", "distance to the nearest other centroid; NaN for a single nucleus"),
    "touches_border": Column("0 or 1", "whether the nucleus touches the image's border", np.int64),
    "confidence": Column("0..1", "mean mask probability; only where probabilities are given"),
}
"""Columns of `measure`, in order."""

WHOLE_COLUMNS: Mapping[str, Column] = {
    "whole_area_px": Column("px^2", "pixels of the whole nucleus, also where others cover it", np.int64),
}
"""Further columns where nuclei are whole; the others then describe what is seen of each nucleus."""

CONFIDENCE_COLUMNS: Mapping[str, Column] = {
    "probability": Column("0..1", "probability that the nucleus matches a true one with an IoU above 0.5"),
    "margin_px": Column("px", "distance within which the true outline lies, for 90 % of the nuclei that match"),
}
"""Further columns where the confidence of nuclei was fitted, see `segmentation.confidence`."""


@typechecked
def measure(
    labels: Integer[np.ndarray, "h w"],
    image: UInt8[np.ndarray, "h w 3"],
    probs: Float[np.ndarray, "h w"] | None = None,
    *,
    context: Integer[np.ndarray, "h w"] | None = None,
) -> Table:
    """Measures every nucleus.

    Args:
      labels: 0 for background; labels need not be contiguous.
      image: RGB.
      probs: mask probabilities, for the column `confidence`.
      context: label map of all nuclei of the window where `labels` holds some of them, under any numbers; touching
        nuclei are counted in it.

    Returns:
      The columns of `COLUMNS`, in this order.

    Reference: Ruifrok and Johnston 2001, Anal Quant Cytol Histol 23(4) (deconvolution); Haralick et al. 1973,
      doi:10.1109/TSMC.1973.4309314 (texture).
    """
    rows, columns = np.nonzero(labels)
    unique, owner = distinct(labels[rows, columns])
    names = [name for name in COLUMNS if name != "confidence" or probs is not None]
    if not len(unique):
        return {name: np.zeros(0, COLUMNS[name].dtype) for name in names}
    area = np.bincount(owner).astype(np.float64)

    def mean(values: Real[np.ndarray, " pixels"]) -> Float[np.ndarray, " nuclei"]:
        return np.bincount(owner, values, len(unique)) / area

    levels = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    row, column = mean(rows), mean(columns)
    boxes = bounding_boxes(labels)
    table: Table = {"label": unique, "row": row, "column": column, "area_px": area.astype(np.int64)}
    table |= _box_columns(boxes, labels.shape)
    table |= _shape_columns(labels, unique, boxes, area, _axes(mean, rows - row[owner], columns - column[owner]))
    table |= _intensity_columns(mean, levels[rows, columns], image[rows, columns])
    table |= _texture_columns(labels, unique, levels)
    table["num_touching"] = _num_touching(labels, unique, labels if context is None else context)
    table["nearest_px"] = nearest_distances(np.stack([row, column], axis=1))
    if probs is not None:
        table["confidence"] = mean(probs[rows, columns])
    return {name: table[name] for name in names}


def _box_columns(boxes: np.ndarray, shape: tuple[int, ...]) -> Table:
    top, left, bottom, right = boxes.T
    at_border = (top == 0) | (left == 0) | (bottom == shape[0]) | (right == shape[1])
    return {
        "top": top,
        "left": left,
        "height": bottom - top,
        "width": right - left,
        "touches_border": at_border.astype(np.int64),
    }


def _shape_columns(
    labels: np.ndarray,
    unique: np.ndarray,
    boxes: np.ndarray,
    area: np.ndarray,
    axes: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> Table:
    major, minor, angle = axes
    perimeter, hull_area = _outline_measures(labels, unique, boxes)
    return {
        "equivalent_diameter_px": np.sqrt(4 * area / np.pi),
        "perimeter_px": perimeter,
        "major_axis_px": major,
        "minor_axis_px": minor,
        "eccentricity": np.sqrt(np.where(major > 0, 1 - np.square(minor / np.maximum(major, 1e-12)), 0)),
        "orientation_degrees": angle,
        "circularity": 4 * np.pi * area / np.square(perimeter),
        "solidity": area / hull_area,
    }


def _intensity_columns(mean: Mean, gray: np.ndarray, colors: np.ndarray) -> Table:
    """Gray values, optical density and haematoxylin, from the gray [n] and RGB [n, 3] values of the pixels."""
    gray = gray.astype(np.float64)
    density = -np.log10(np.maximum(gray, 1) / 255)
    stains = -np.log10(np.maximum(colors, 1) / 255) @ np.linalg.inv(HED / np.linalg.norm(HED, axis=1, keepdims=True))
    table: Table = {}
    for name, values in (("intensity", gray), ("optical_density", density)):
        table[f"{name}_mean"] = mean(values)
        table[f"{name}_sd"] = np.sqrt(np.maximum(0, mean(np.square(values)) - np.square(mean(values))))
    table["haematoxylin_mean"] = mean(stains[:, 0])
    return table


def in_micrometers(table: Mapping[str, Shaped[np.ndarray, " nuclei"]], mpp: float) -> Table:
    """Adds a column in micrometers for each in pixels.

    Args:
      table: columns of `measure`.
      mpp: micrometers per pixel.

    Returns:
      All columns; each in micrometers follows the one in pixels.
    """
    out: Table = {}
    for name, values in table.items():
        out[name] = values
        if name.endswith("_px"):
            power = 2 if name.endswith("area_px") else 1
            out[name.removesuffix("_px") + ("_um2" if power == 2 else "_um")] = values * mpp**power
    return out


def _axes(mean: Mean, down: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns axes in pixels and orientation in degrees of the ellipses with the same second moments.

    Args:
      mean: mean over the pixels of each nucleus.
      down: rows of the pixels, from their nucleus' centroid.
      right: columns, likewise.
    """
    rr, cc, rc = mean(down * down), mean(right * right), mean(down * right)
    middle, spread = (rr + cc) / 2, np.sqrt(np.square((rr - cc) / 2) + rc * rc)
    angle = np.degrees(0.5 * np.arctan2(2 * rc, rr - cc))
    return 4 * np.sqrt(middle + spread), 4 * np.sqrt(np.maximum(0, middle - spread)), angle


def _outline_measures(labels: np.ndarray, unique: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the Crofton perimeter and the area of the convex hull of each nucleus.

    The perimeter is half the sum over four directions of pi / 4 times the crossings of parallel lines with the
    outline times the lines' distance (1, or 1 / sqrt 2 for diagonals).
    """
    perimeter, hull_area = np.zeros(len(unique)), np.zeros(len(unique))
    corners = np.array([(0, 0), (0, 1), (1, 0), (1, 1)])
    for index, (label, (top, left, bottom, right)) in enumerate(zip(unique, boxes, strict=True)):
        inside = np.pad(labels[top:bottom, left:right] == label, 1)
        for step in STEPS:
            here, there = neighbors(inside, step)
            perimeter[index] += np.count_nonzero(here != there) * (np.sqrt(0.5) if all(step) else 1.0)
        # Both ends of each row have the same hull as all pixels.
        kept = np.argwhere(inside & ~(np.roll(inside, 1, axis=1) & np.roll(inside, -1, axis=1)))
        points = (kept[:, None] + corners).reshape(-1, 2).astype(np.int32)
        hull_area[index] = cv2.contourArea(cv2.convexHull(points))
    return perimeter * np.pi / 8, hull_area


def _texture_columns(labels: np.ndarray, unique: np.ndarray, gray: np.ndarray) -> Table:
    """Returns the entropy of gray levels, and contrast and homogeneity of neighbors within each nucleus."""
    levels = (gray.astype(np.int64) * GRAY_LEVELS) // 256
    inside = labels > 0
    owner = np.searchsorted(unique, labels[inside])
    histogram = np.zeros((len(unique), GRAY_LEVELS))
    np.add.at(histogram, (owner, levels[inside]), 1)
    share = histogram / histogram.sum(axis=1, keepdims=True)
    entropy = -(share * np.log2(np.where(share > 0, share, 1))).sum(axis=1)
    pairs, contrast, homogeneity = (np.zeros(len(unique)) for _ in range(3))
    for step in STEPS:
        here, there = neighbors(labels, step)
        same = (here == there) & (here > 0)
        owner = np.searchsorted(unique, here[same])
        level, neighbor_level = neighbors(levels, step)
        difference = np.square(level[same] - neighbor_level[same])
        pairs += np.bincount(owner, minlength=len(unique))
        contrast += np.bincount(owner, difference, len(unique))
        homogeneity += np.bincount(owner, 1 / (1 + difference), len(unique))
    pairs = np.maximum(pairs, 1)
    return {
        "texture_entropy_bits": entropy,
        "texture_contrast": contrast / pairs,
        "texture_homogeneity": homogeneity / pairs,
    }


def _num_touching(labels: np.ndarray, unique: np.ndarray, context: np.ndarray) -> np.ndarray:
    """Counts the nuclei of `context` that touch each nucleus."""
    meetings = []
    for step in STEPS:
        (own_here, own_there), (here, there) = neighbors(labels, step), neighbors(context, step)
        differ = (here != there) & (here > 0) & (there > 0)
        meetings.append(np.stack([own_here[differ], there[differ]], axis=1))
        meetings.append(np.stack([own_there[differ], here[differ]], axis=1))
    pairs = np.unique(np.concatenate(meetings), axis=0)
    pairs = pairs[pairs[:, 0] > 0]
    return np.bincount(np.searchsorted(unique, pairs[:, 0]), minlength=len(unique))


@typechecked
def nearest_distances(centers: Float[np.ndarray, "nuclei 2"]) -> Float[np.ndarray, " nuclei"]:
    """Returns the distance from each point to the nearest other one; NaN for a single point."""
    if len(centers) < 2:
        return np.full(len(centers), np.nan)
    distances, _ = KDTree(centers).query(centers, k=2)
    return distances[:, 1]
