"""Single nuclei from what a network predicts.

The relief whose hills are nuclei is the predicted distance to the nucleus' border, or the predicted place within it,
or, where a network has no such head, the distance within the mask, from the predicted boundary where there is one.
Every pixel climbs to its hilltop along the steepest way; hills that are no real hills of their own are joined.
"""

from collections.abc import Sequence

import cv2
import numpy as np

from cervseg_jax.heads import Head, channels
from cervseg_jax.label_maps import STEPS, neighbors
from cervseg_jax.schema import PostprocessingConfig


def label_instances(maps: np.ndarray, heads: Sequence[Head], rules: PostprocessingConfig) -> np.ndarray:
    """Finds the nuclei of an image.

    Args:
      maps: float probabilities [h, w, maps] in [0, 1].
      heads: what the maps are, "mask" first.
      rules: parameters.

    Returns:
      int32 labels [h, w], 1..n in reading order of the first pixels, 0 for background.
    """
    inside = clean(maps[..., 0] >= rules.threshold, min_area_px=rules.min_area_px, max_hole_px=rules.max_hole_px)
    if not inside.any():
        return np.zeros(inside.shape, np.int32)
    labels = watershed_labels(_elevation(maps, heads, inside, rules), inside, min_saddle_depth=rules.min_saddle_depth)
    areas = np.bincount(labels.ravel())
    keep = areas >= rules.min_area_px
    keep[0] = False
    return numbered(labels * keep[labels])


def _elevation(maps: np.ndarray, heads: Sequence[Head], inside: np.ndarray, rules: PostprocessingConfig) -> np.ndarray:
    """Heights whose hills are the nuclei; float32 [h, w], positive inside."""
    boundary = maps[..., channels(heads, "boundary").start].astype(np.float32) if "boundary" in heads else None
    if "distance" in heads or "hover" in heads:
        if "distance" in heads:
            heights = maps[..., channels(heads, "distance").start].astype(np.float32)
        else:
            # Places run from one border of a nucleus to the other: high in the middle, low where two nuclei meet.
            heights = 1.0 - np.abs(2.0 * maps[..., channels(heads, "hover")] - 1.0).max(axis=2).astype(np.float32)
        heights = heights if boundary is None else heights * (1.0 - 0.5 * boundary)
    elif boundary is not None:
        # The second term leads the boundary's own pixels to the nearest core.
        heights = _distance(inside & (boundary < rules.boundary_threshold)) + 0.05 * _distance(inside)
    else:
        heights = _distance(inside)
    heights = np.where(inside, heights, np.float32(0))  # what is predicted outside means nothing
    if rules.smoothing_px > 0:
        heights = cv2.GaussianBlur(heights, (0, 0), rules.smoothing_px)
    return np.maximum(heights, 1e-6)


def _distance(mask: np.ndarray) -> np.ndarray:
    return np.asarray(cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE), np.float32)


def clean(mask: np.ndarray, *, min_area_px: int, max_hole_px: int) -> np.ndarray:
    """Drops small parts (connected at sides and corners) and fills small holes (connected at sides).

    Args:
      mask: bool [h, w].
      min_area_px: smaller parts are dropped.
      max_hole_px: holes up to this area are filled; what touches the image's border is no hole.

    Returns:
      bool [h, w].
    """
    areas, parts = _parts(mask, connectivity=8)
    kept = areas >= min_area_px
    kept[0] = False
    mask = kept[parts]
    areas, gaps = _parts(~mask, connectivity=4)
    filled = areas <= max_hole_px
    for outside in (0, gaps[0], gaps[-1], gaps[:, 0], gaps[:, -1]):
        filled[outside] = False
    return mask | filled[gaps]


def _parts(mask: np.ndarray, *, connectivity: int) -> tuple[np.ndarray, np.ndarray]:
    """Area of each connected part, and which part each pixel belongs to; part 0 is everything else."""
    _, parts, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=connectivity)
    return np.asarray(stats[:, cv2.CC_STAT_AREA], np.int64), np.asarray(parts, np.int32)


def watershed_labels(elevation: np.ndarray, inside: np.ndarray, *, min_saddle_depth: float) -> np.ndarray:
    """Divides an area into the hills of a relief.

    Every pixel belongs to the local top that it reaches by going to its highest neighbor, again and again. Then the
    passes between hills are gone through from the highest down: where a pass lies less than `min_saddle_depth` below
    the lower top, the lower hill becomes part of the higher one.

    Args:
      elevation: positive heights [h, w].
      inside: bool [h, w]; the area.
      min_saddle_depth: as a share of the lower top's height.

    Returns:
      int32 labels [h, w], 0 outside.

    Reference: Bertrand 2005, doi:10.1007/s10851-005-4891-5 (dynamics of tops); the climb is the watershed of
      Cousty et al. 2009, doi:10.1109/TPAMI.2008.173.
    """
    top, area = _peaks(elevation, inside)
    peaks, basin = np.unique(top, return_inverse=True)
    parent = _joined(elevation, area, basin, elevation.ravel()[peaks], min_saddle_depth)
    labels = np.zeros(elevation.shape, np.int32)
    labels.ravel()[area] = parent[basin] + 1
    return labels


def _peaks(elevation: np.ndarray, inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flat index of each inside pixel's top, and the flat indices of the inside pixels."""
    height, width = elevation.shape
    area = np.flatnonzero(inside)
    padded = np.full((height + 2, width + 2), -np.inf, np.float32)
    padded[1:-1, 1:-1] = np.where(inside, elevation, -np.inf)
    flat = padded.ravel()
    rows, columns = np.divmod(area, width)
    here = (rows + 1) * (width + 2) + columns + 1
    best, best_height = here.copy(), flat[here]
    # Equal heights are ordered by position, so that plateaus have one top and no way goes in circles.
    for step in (-width - 3, -width - 2, -width - 1, -1, 1, width + 1, width + 2, width + 3):
        there = here + step
        better = (flat[there] > best_height) | ((flat[there] == best_height) & (there > best))
        best[better], best_height[better] = there[better], flat[there[better]]
    target = np.arange(flat.size)
    target[here] = best
    while True:
        further = target[target[here]]
        if np.array_equal(further, target[here]):
            break
        target[here] = further
    rows, columns = np.divmod(target[here], width + 2)
    return (rows - 1) * width + columns - 1, area


def _joined(
    elevation: np.ndarray,
    area: np.ndarray,
    basin: np.ndarray,
    heights: np.ndarray,
    min_saddle_depth: float,
) -> np.ndarray:
    """Joins hills across high passes; returns the number of the hill that each has become part of."""
    number = np.full(elevation.size, -1)
    number[area] = basin
    number = number.reshape(elevation.shape)
    pairs, passes = [], []
    for step in STEPS:
        here, there = neighbors(number, step)
        meet = (here != there) & (here >= 0) & (there >= 0)
        pairs.append(np.stack([here[meet], there[meet]], axis=1))
        passes.append(np.minimum(*(heights_of[meet] for heights_of in neighbors(elevation, step))))
    ends, levels = np.sort(np.concatenate(pairs), axis=1), np.concatenate(passes)
    order = np.argsort(-levels, kind="stable")
    parent = np.arange(len(heights))

    def root(hill: int) -> int:
        while parent[hill] != hill:
            parent[hill] = parent[parent[hill]]
            hill = parent[hill]
        return hill

    # The highest pass of two hills decides; the others lie lower and would decide the same or be too low.
    _, first = np.unique(ends[order], axis=0, return_index=True)
    for position in order[np.sort(first)]:
        one, other = root(ends[position, 0]), root(ends[position, 1])
        if one == other:
            continue
        lower, higher = (one, other) if (heights[one], one) < (heights[other], other) else (other, one)
        if levels[position] >= (1.0 - min_saddle_depth) * heights[lower]:
            parent[lower] = higher
    return np.array([root(hill) for hill in range(len(parent))], np.int64)


def numbered(labels: np.ndarray) -> np.ndarray:
    """Renumbers labels 1..n in reading order of their first pixels; int32 [h, w]."""
    found, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    is_nucleus = found > 0
    numbers = np.zeros(len(found), np.int32)
    numbers[np.flatnonzero(is_nucleus)[np.argsort(first[is_nucleus])]] = np.arange(1, is_nucleus.sum() + 1)
    return numbers[inverse].reshape(labels.shape)
