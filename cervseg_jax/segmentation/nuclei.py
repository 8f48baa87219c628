"""The nuclei of a whole image: label map, measurements and outlines, block by block."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cervseg_jax.annotations.polygons import Polygon, polygons_of
from cervseg_jax.heads import Head
from cervseg_jax.label_maps import centroids
from cervseg_jax.schema import PostprocessingConfig
from cervseg_jax.segmentation.morphometry import Table, measure, nearest_distances
from cervseg_jax.segmentation.tiling import ImageLike
from cervseg_jax.segmentation.watershed import label_instances, numbered

BLOCK_PX = 2048
"""Side of a block; smaller images are one block."""
HALO_PX = 256
"""What a block sees beyond its border: more than the size of a nucleus and its neighbors."""


class Nuclei(NamedTuple):
    """All nuclei of an image, in the order of their labels 1..n."""

    labels: np.ndarray
    """int32 [h, w]."""
    table: Table
    polygons: list[list[Polygon]]


def find_nuclei(
    maps: np.ndarray,
    image: ImageLike,
    heads: Sequence[Head],
    rules: PostprocessingConfig,
    *,
    labels: np.ndarray | None = None,
) -> Nuclei:
    """Tells nuclei apart, measures and outlines them.

    A block decides about the nuclei whose centroid lies in it, and sees more than it decides about; a nucleus on a
    seam is therefore seen whole by one block and counted once.

    Args:
      maps: probabilities [h, w, maps]; may lie on disk.
      image: uint8 RGB of the same height and width.
      heads: what the maps are.
      rules: how nuclei are told apart.
      labels: zeros, int32 [h, w], to be filled; None: made here.

    Returns:
      The nuclei. Distances to the nearest neighbor are those in the whole image.
    """
    height, width = maps.shape[:2]
    labels = np.zeros((height, width), np.int32) if labels is None else labels
    tables: list[Table] = []
    polygons: list[list[Polygon]] = []
    for top in range(0, height, BLOCK_PX):
        for left in range(0, width, BLOCK_PX):
            core = (top, left, min(top + BLOCK_PX, height), min(left + BLOCK_PX, width))
            table, outlines = _block(maps, image, heads, rules, labels, core, len(polygons))
            tables.append(table)
            polygons += outlines
    table = {name: np.concatenate([part[name] for part in tables]) for name in tables[0]}
    table["nearest_px"] = nearest_distances(np.stack([table["row"], table["column"]], axis=1))
    return Nuclei(labels, table, polygons)


def _block(
    maps: np.ndarray,
    image: ImageLike,
    heads: Sequence[Head],
    rules: PostprocessingConfig,
    labels: np.ndarray,
    core: tuple[int, int, int, int],
    num_before: int,
) -> tuple[Table, list[list[Polygon]]]:
    """Finds the nuclei of one block and writes them into `labels`, numbered from `num_before` + 1."""
    height, width = labels.shape
    top, left = max(0, core[0] - HALO_PX), max(0, core[1] - HALO_PX)
    window = np.s_[top : min(height, core[2] + HALO_PX), left : min(width, core[3] + HALO_PX)]
    seen = np.asarray(maps[window])
    everything = label_instances(seen, heads, rules)
    # Another block's nuclei keep their pixels: clusters longer than the halo may be parted otherwise there.
    found = np.where(labels[window] > 0, 0, everything)
    places = centroids(found) + (top, left)
    numbers = np.unique(found[found > 0])
    own = (places >= core[:2]).all(axis=1) & (places < core[2:]).all(axis=1)
    found = numbered(np.where(np.isin(found, numbers[own]), found, 0))
    table = measure(found, image[window], seen[..., 0], context=everything)
    table["label"] = table["label"] + num_before
    for name, offset, extent in (("row", top, "top"), ("column", left, "left")):
        table[name] = table[name] + offset
        table[extent] = table[extent] + offset
    table["touches_border"] = (
        (table["top"] == 0)
        | (table["left"] == 0)
        | (table["top"] + table["height"] == height)
        | (table["left"] + table["width"] == width)
    ).astype(np.int64)
    outlines = [
        [Polygon(part.outer + (left, top), [hole + (left, top) for hole in part.holes]) for part in parts]
        for parts in polygons_of(found)
    ]
    labels[window] = np.where(found > 0, found + num_before, labels[window])
    return table, outlines
