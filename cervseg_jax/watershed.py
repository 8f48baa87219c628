"""Watershed by steepest ascent, with basins merged across shallow saddles.

Every pixel joins the local peak that it reaches by moving to its highest neighbor. Two basins are merged where the
saddle between them is shallow.
"""

import numpy as np
from jaxtyping import Bool, Float, Int32

from cervseg_jax.label_maps import STEPS, distinct, neighbors
from cervseg_jax.typing import typechecked


@typechecked
def watershed_labels(
    elevation: Float[np.ndarray, "h w"], inside: Bool[np.ndarray, "h w"], *, min_saddle_depth: float
) -> Int32[np.ndarray, "h w"]:
    """Divides an area into the basins of an elevation map.

    The saddles between basins are visited from the highest down: two basins are merged where the saddle lies less than
    `min_saddle_depth` below the lower peak.

    Args:
      elevation: positive values.
      inside: the area to divide.
      min_saddle_depth: as a share of the lower peak's elevation.

    Returns:
      Labels, 0 outside.

    Reference: Bertrand 2005, doi:10.1007/s10851-005-4891-5 (dynamics of peaks); the ascent is the watershed of
      Cousty et al. 2009, doi:10.1109/TPAMI.2008.173.
    """
    peak_of_pixel, area = _peaks(elevation, inside)
    peaks, basin = distinct(peak_of_pixel)
    parent = _merged_basins(elevation, area, basin, elevation.ravel()[peaks], min_saddle_depth)
    labels = np.zeros(elevation.shape, np.int32)
    labels.ravel()[area] = parent[basin] + 1
    return labels


def _peaks(elevation: np.ndarray, inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the flat index of each inside pixel's peak, and the flat indices of the inside pixels."""
    height, width = elevation.shape
    area = np.flatnonzero(inside)
    padded = np.full((height + 2, width + 2), -np.inf, np.float32)
    padded[1:-1, 1:-1] = np.where(inside, elevation, -np.inf)
    flat = padded.ravel()
    rows, columns = np.divmod(area, width)
    here = (rows + 1) * (width + 2) + columns + 1
    best, best_elevation = here.copy(), flat[here]
    # Ties are broken by position, so that a plateau has one peak and no path is a cycle.
    for step in (-width - 3, -width - 2, -width - 1, -1, 1, width + 1, width + 2, width + 3):
        there = here + step
        better = (flat[there] > best_elevation) | ((flat[there] == best_elevation) & (there > best))
        best[better], best_elevation[better] = there[better], flat[there[better]]
    target = np.arange(flat.size)
    target[here] = best
    while True:
        further = target[target[here]]
        if np.array_equal(further, target[here]):
            break
        target[here] = further
    rows, columns = np.divmod(target[here], width + 2)
    return (rows - 1) * width + columns - 1, area


def _merged_basins(
    elevation: np.ndarray,
    area: np.ndarray,
    basin: np.ndarray,
    peak_elevations: np.ndarray,
    min_saddle_depth: float,
) -> np.ndarray:
    """Merges basins across shallow saddles; returns for each basin the one that it has become part of."""
    basins = np.full(elevation.size, -1)
    basins[area] = basin
    basins = basins.reshape(elevation.shape)
    pairs, saddles = [], []
    for step in STEPS:
        here, there = neighbors(basins, step)
        meet = (here != there) & (here >= 0) & (there >= 0)
        pairs.append(np.stack([here[meet], there[meet]], axis=1))
        saddles.append(np.minimum(*(values[meet] for values in neighbors(elevation, step))))
    ends, levels = np.sort(np.concatenate(pairs), axis=1), np.concatenate(saddles)
    order = np.argsort(-levels, kind="stable")
    parent = np.arange(len(peak_elevations))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    # Only the highest saddle of two basins counts: a lower one would decide the same or be too deep.
    _, first = np.unique(ends[order], axis=0, return_index=True)
    for position in order[np.sort(first)]:
        a, b = root(ends[position, 0]), root(ends[position, 1])
        if a == b:
            continue
        lower, higher = (a, b) if (peak_elevations[a], a) < (peak_elevations[b], b) else (b, a)
        if levels[position] >= (1.0 - min_saddle_depth) * peak_elevations[lower]:
            parent[lower] = higher
    return np.array([root(index) for index in range(len(parent))], np.int64)
