"""Instance labels from a mask: a watershed on an elevation map of the heads, see `watershed`.

The elevation is the predicted distance to the nucleus' border; without that head it follows from the predicted
coordinates within the nucleus ("hover"), and without both it is the distance transform of the mask, less the predicted
boundary where there is one.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int32, Integer

from cervseg_jax.heads import Head, channels
from cervseg_jax.label_maps import STEPS, distance_to_border, distinct, neighbors
from cervseg_jax.schema import PostprocessingConfig
from cervseg_jax.typing import typechecked
from cervseg_jax.watershed import watershed_labels


@typechecked
def label_instances(
    maps: Float[np.ndarray, "h w maps"],
    mask: Bool[np.ndarray, "h w"],
    heads: Sequence[Head],
    params: PostprocessingConfig,
) -> Int32[np.ndarray, "h w"]:
    """Divides a mask into nuclei.

    Args:
      maps: probabilities in [0, 1] of all heads; the mask's own channel is not used.
      mask: pixels that belong to nuclei, see `make_mask`. Small components are dropped and small holes filled.
      heads: heads of the network in the order of `maps`.
      params: parameters of the watershed.

    Returns:
      Labels 1..n in reading order of their first pixels, 0 for background.
    """
    inside = clean(mask, min_area_px=params.min_area_px, max_hole_px=params.max_hole_px)
    if not inside.any():
        return np.zeros(inside.shape, np.int32)
    elevation = _elevation(maps, heads, inside, params)
    labels = watershed_labels(elevation, inside, min_saddle_depth=params.min_saddle_depth)
    labels = connect_at_sides(labels)
    areas = np.bincount(labels.ravel())
    keep = areas >= params.min_area_px
    keep[0] = False
    return relabel(labels * keep[labels])


def _elevation(maps: np.ndarray, heads: Sequence[Head], inside: np.ndarray, params: PostprocessingConfig) -> np.ndarray:
    """Returns the map that the watershed runs on, float32 [h, w]: high in the middle of nuclei, positive inside."""
    boundary = maps[..., channels(heads, "boundary").start].astype(np.float32) if "boundary" in heads else None
    if "distance" in heads or "hover" in heads:
        if "distance" in heads:
            elevation = maps[..., channels(heads, "distance").start].astype(np.float32)
        else:
            # Coordinates run from 0 to 1 across a nucleus: the elevation is 1 in its middle and 0 at its border.
            elevation = 1.0 - np.abs(2.0 * maps[..., channels(heads, "hover")] - 1.0).max(axis=2).astype(np.float32)
        elevation = elevation if boundary is None else elevation * (1.0 - 0.5 * boundary)
    elif boundary is not None:
        # The second term makes boundary pixels ascend to the nearest core.
        core = inside & (boundary < params.boundary_threshold)
        elevation = distance_to_border(core) + 0.05 * distance_to_border(inside)
    else:
        elevation = distance_to_border(inside)
    elevation = np.where(inside, elevation, np.float32(0))  # predictions outside are undefined
    if params.smoothing_px > 0:
        elevation = cv2.GaussianBlur(elevation, (0, 0), params.smoothing_px)
    return np.maximum(elevation, 1e-6)


@typechecked
def clean(mask: Bool[np.ndarray, "h w"], *, min_area_px: int, max_hole_px: int) -> Bool[np.ndarray, "h w"]:
    """Drops small components (8-connected) and fills small holes (4-connected).

    Args:
      mask: the mask.
      min_area_px: smaller components are dropped.
      max_hole_px: holes up to this area are filled; background that touches the image's border is not a hole.

    Returns:
      The cleaned mask.
    """
    areas, components = _components(mask, connectivity=8)
    kept = areas >= min_area_px
    kept[0] = False
    mask = kept[components]
    areas, components = _components(~mask, connectivity=4)
    filled = areas <= max_hole_px
    for outside in (0, components[0], components[-1], components[:, 0], components[:, -1]):
        filled[outside] = False
    return mask | filled[components]


def _components(mask: np.ndarray, *, connectivity: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the area of each connected component and the component of each pixel; 0 is everything else."""
    _, components, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=connectivity)
    return np.asarray(stats[:, cv2.CC_STAT_AREA], np.int64), np.asarray(components, np.int32)


@typechecked
def connect_at_sides(labels: Int32[np.ndarray, "h w"]) -> Int32[np.ndarray, "h w"]:
    """Makes every nucleus one 4-connected piece, so that its outline is one polygon.

    Of a nucleus whose pieces meet at corners alone, the largest piece keeps the label. Each other piece goes to the
    nucleus that it has the longest common border with, or becomes background where it touches none.

    Args:
      labels: label map; nuclei may be 8-connected.

    Returns:
      Label map with the same labels.

    Example:
      >>> connect_at_sides(np.array([[1, 1, 0], [1, 1, 2], [0, 0, 1]], np.int32)).tolist()
      [[1, 1, 0], [1, 1, 2], [0, 0, 2]]
    """
    pieces = _pieces(labels)
    areas = np.bincount(pieces.ravel())
    owners = np.zeros(len(areas), np.int32)
    owners[pieces] = labels
    # Pieces by label, and by area within a label; the last of each label is kept. Ties go to the first piece.
    order = np.lexsort((-np.arange(len(areas)), areas, owners))
    is_main = np.zeros(len(areas), bool)
    is_main[order[np.append(owners[order][1:] != owners[order][:-1], True)]] = True
    if is_main[1:].all():
        return labels
    touching = []
    for step in STEPS[:2]:
        here, there = neighbors(pieces, step)
        differ = here != there
        touching += [np.stack([here[differ], there[differ]]), np.stack([there[differ], here[differ]])]
    stray, neighbor = np.concatenate(touching, axis=1)
    chosen = ~is_main[stray] & (stray > 0) & is_main[neighbor] & (neighbor > 0)
    pairs, lengths = np.unique(np.stack([stray[chosen], neighbor[chosen]]), axis=1, return_counts=True)
    new_owners = np.where(is_main, owners, 0).astype(np.int32)
    for index in np.argsort(lengths, kind="stable"):  # the longest border comes last
        new_owners[pairs[0, index]] = owners[pairs[1, index]]
    return new_owners[pieces]


def _pieces(labels: np.ndarray) -> np.ndarray:
    """Returns the 4-connected components of equal labels, int32 [h, w], numbered from 1; 0 is background.

    Components are found on a grid of twice the size, with a cell between two pixels that is set if their labels are
    equal.
    """
    height, width = labels.shape
    grid = np.zeros((2 * height - 1, 2 * width - 1), np.uint8)
    grid[::2, ::2] = labels > 0
    for step, cells in (((1, 0), grid[1::2, ::2]), ((0, 1), grid[::2, 1::2])):
        here, there = neighbors(labels, step)
        cells[...] = (here == there) & (here > 0)
    _, components = cv2.connectedComponents(grid, connectivity=4)
    return np.asarray(components[::2, ::2], np.int32)


@typechecked
def relabel(labels: Integer[np.ndarray, "h w"]) -> Int32[np.ndarray, "h w"]:
    """Renumbers labels 1..n in reading order of their first pixels.

    Example:
      >>> relabel(np.array([[0, 9], [4, 9]])).tolist()
      [[0, 1], [2, 1]]
    """
    places = np.flatnonzero(labels > 0)
    unique, position = distinct(labels.ravel()[places])
    first = np.zeros(len(unique), np.int64)
    first[position[::-1]] = places[::-1]  # the last value written is that of the first pixel
    new_labels = np.zeros(len(unique), np.int32)
    new_labels[np.argsort(first)] = np.arange(1, len(unique) + 1)
    found = np.zeros(labels.shape, np.int32)
    found.ravel()[places] = new_labels[position]
    return found
