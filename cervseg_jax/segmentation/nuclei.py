"""The nuclei of a whole image: label map, measurements and outlines, block by block.

Each block is processed with a margin, and keeps the nuclei whose centroid lies in it: a nucleus on a seam is seen whole
by one block and counted once.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int32

from cervseg_jax.annotations.polygons import Polygon, polygons_of
from cervseg_jax.heads import Head
from cervseg_jax.label_maps import centroids
from cervseg_jax.schema import PostprocessingConfig
from cervseg_jax.segmentation.images import ImageLike
from cervseg_jax.segmentation.instances import connect_at_sides, label_instances, relabel
from cervseg_jax.segmentation.morphometry import Table, measure, nearest_distances
from cervseg_jax.typing import typechecked

BLOCK_PX = 2048
"""Side of a block; smaller images are one block."""
HALO_PX = 256
"""Margin that a block sees beyond its border: more than a nucleus and its neighbors."""


class Nuclei(NamedTuple):
    """All nuclei of an image, in the order of their labels 1..n."""

    labels: np.ndarray
    """int32 [h, w]."""
    table: Table
    """Columns of `morphometry.COLUMNS`."""
    polygons: list[list[Polygon]]


class _Block(NamedTuple):
    top: int
    left: int
    """Position of the block with its margin in the image."""
    window: tuple[slice, slice]
    labels: np.ndarray
    """The block's own nuclei as 1..n, int32 [h, w]."""
    context: np.ndarray
    """Everything that was labelled in the window, under other numbers."""
    num_before: int
    """Nuclei of earlier blocks; the block's first nucleus has this label + 1."""


@typechecked
def label_nuclei(
    maps: Float[np.ndarray, "h w maps"],
    mask: Bool[np.ndarray, "h w"],
    heads: Sequence[Head],
    params: PostprocessingConfig,
    *,
    labels: Int32[np.ndarray, "h w"] | None = None,
) -> Int32[np.ndarray, "h w"]:
    """Labels the nuclei of an image of any size.

    Args:
      maps: probabilities; may be memory-mapped.
      mask: pixels that belong to nuclei, see `make_mask`.
      heads: heads of the network in the order of `maps`.
      params: parameters of the watershed.
      labels: array of zeros to fill; None: a new one.

    Returns:
      Labels 1..n, 0 for background.
    """
    labels = np.zeros(mask.shape, np.int32) if labels is None else labels
    for _ in _blocks(maps, mask, heads, params, labels):
        pass
    return labels


@typechecked
def find_nuclei(
    maps: Float[np.ndarray, "h w maps"],
    mask: Bool[np.ndarray, "h w"],
    image: ImageLike,
    heads: Sequence[Head],
    params: PostprocessingConfig,
    *,
    labels: Int32[np.ndarray, "h w"] | None = None,
) -> Nuclei:
    """Labels, measures and outlines the nuclei of an image of any size.

    Args:
      maps: probabilities; may be memory-mapped.
      mask: pixels that belong to nuclei, see `make_mask`.
      image: uint8 RGB of the same height and width.
      heads: heads of the network in the order of `maps`.
      params: parameters of the watershed.
      labels: array of zeros to fill; None: a new one.

    Returns:
      The nuclei, with the labels of `label_nuclei`. Distances to the nearest neighbor are those in the whole image.
    """
    labels = np.zeros(mask.shape, np.int32) if labels is None else labels
    tables: list[Table] = []
    polygons: list[list[Polygon]] = []
    for block in _blocks(maps, mask, heads, params, labels):
        tables.append(_measured(block, maps, image))
        polygons += [
            [
                Polygon(
                    polygon.outer + (block.left, block.top), [hole + (block.left, block.top) for hole in polygon.holes]
                )
                for polygon in own
            ]
            for own in polygons_of(block.labels)
        ]
    table = {name: np.concatenate([own[name] for own in tables]) for name in tables[0]}
    table["nearest_px"] = nearest_distances(np.stack([table["row"], table["column"]], axis=1))
    return Nuclei(labels, table, polygons)


def _blocks(
    maps: np.ndarray, mask: np.ndarray, heads: Sequence[Head], params: PostprocessingConfig, labels: np.ndarray
) -> Iterator[_Block]:
    """Labels one block after the other and writes its nuclei into `labels`."""
    height, width = labels.shape
    num_before = 0
    for first_row in range(0, height, BLOCK_PX):
        for first_column in range(0, width, BLOCK_PX):
            start = np.array((first_row, first_column))
            end = np.minimum(start + BLOCK_PX, (height, width))
            top, left = np.maximum(0, start - HALO_PX).tolist()
            bottom, right = np.minimum((height, width), end + HALO_PX).tolist()
            window = np.s_[top:bottom, left:right]
            context = label_instances(np.asarray(maps[window]), mask[window], heads, params)
            # Nuclei of earlier blocks keep their pixels: clusters longer than the margin may differ here.
            is_taken = labels[window] > 0
            candidates = connect_at_sides(np.where(is_taken, 0, context)) if is_taken.any() else context
            centers = centroids(candidates) + (top, left)
            is_own = (centers >= start).all(axis=1) & (centers < end).all(axis=1)
            own = np.unique(candidates[candidates > 0])[is_own]
            block_labels = relabel(np.where(np.isin(candidates, own), candidates, 0))
            labels[window] = np.where(block_labels > 0, block_labels + num_before, labels[window])
            yield _Block(top, left, window, block_labels, context, num_before)
            num_before += len(own)


def _measured(block: _Block, maps: np.ndarray, image: ImageLike) -> Table:
    """Measures the nuclei of a block, with positions in the whole image."""
    height, width = maps.shape[:2]
    probs = np.asarray(maps[block.window][..., 0])
    table = measure(block.labels, np.asarray(image[block.window]), probs, context=block.context)
    table["label"] = table["label"] + block.num_before
    for center, offset, extent in (("row", block.top, "top"), ("column", block.left, "left")):
        table[center] = table[center] + offset
        table[extent] = table[extent] + offset
    table["touches_border"] = (
        (table["top"] == 0)
        | (table["left"] == 0)
        | (table["top"] + table["height"] == height)
        | (table["left"] + table["width"] == width)
    ).astype(np.int64)
    return table
