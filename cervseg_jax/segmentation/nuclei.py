"""The nuclei of a whole image: label map, measurements and outlines, block by block.

Each block is processed with a margin, and keeps the nuclei whose centroid lies in it: a nucleus on a seam is seen whole
by one block and counted once. Nuclei that are whole where they overlap are chosen in the whole image at once, and
fitted to the mask block by block.
"""

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int32

from cervseg_jax.annotations.polygons import Polygon, polygons_of
from cervseg_jax.extents import Extent
from cervseg_jax.heads import Head
from cervseg_jax.label_maps import centroids
from cervseg_jax.schema import PostprocessingConfig
from cervseg_jax.segmentation.blocks import BLOCK_PX, Block, BlockPool, Place, joined, label_table, measured, windows
from cervseg_jax.segmentation.candidates import Candidates
from cervseg_jax.segmentation.images import ImageLike
from cervseg_jax.segmentation.instances import connect_at_sides, label_instances, relabel
from cervseg_jax.segmentation.morphometry import Table
from cervseg_jax.segmentation.whole import WholeNucleus
from cervseg_jax.segmentation.whole_image import find_whole, paint_all, whole_polygons, whole_table
from cervseg_jax.typing import typechecked


class Nuclei(NamedTuple):
    """All nuclei of an image, in the order of their labels 1..n."""

    labels: np.ndarray
    """int32 [h, w]."""
    table: Table
    """Columns of `morphometry.COLUMNS`, and of `morphometry.WHOLE_COLUMNS` where nuclei are whole."""
    polygons: list[list[Polygon]]
    """Outlines; where nuclei are whole they may overlap."""
    whole: list[WholeNucleus] | None = None
    """The whole nuclei; None where nuclei are what the label map shows."""

    @property
    def diameters(self) -> np.ndarray:
        """Diameters of the discs with the areas of the whole nuclei, in pixels, float64 [n]."""
        return np.sqrt(4 * self.table["whole_area_px" if self.whole is not None else "area_px"] / np.pi)

    @property
    def extents(self) -> list[Extent] | None:
        """Pixels of the whole nuclei; None where nuclei are what the label map shows."""
        return None if self.whole is None else [nucleus.extent for nucleus in self.whole]


@typechecked
def label_nuclei(
    maps: Float[np.ndarray, "h w maps"],
    mask: Bool[np.ndarray, "h w"],
    heads: Sequence[Head],
    params: PostprocessingConfig,
    *,
    candidates: Candidates | None = None,
    labels: Int32[np.ndarray, "h w"] | None = None,
    threads: int | None = None,
) -> Int32[np.ndarray, "h w"]:
    """Labels the nuclei of an image of any size.

    Args:
      maps: probabilities; may be memory-mapped.
      mask: pixels that belong to nuclei, see `make_mask`.
      heads: heads of the network in the order of `maps`.
      params: parameters of the watershed.
      candidates: whole outlines that the network proposes; None: the mask is divided.
      labels: array of zeros to fill; None: a new one.
      threads: as of `BlockPool`; results do not depend on it.

    Returns:
      Labels 1..n, 0 for background.
    """
    labels = np.zeros(mask.shape, np.int32) if labels is None else labels
    if candidates is not None:
        find_whole(maps, mask, heads, params, candidates, labels=labels, threads=threads)
        return labels
    with BlockPool(mask.shape, threads) as pool:
        deque(_blocks(maps, mask, heads, params, labels, pool), maxlen=0)
    return labels


@typechecked
def find_nuclei(
    maps: Float[np.ndarray, "h w maps"],
    mask: Bool[np.ndarray, "h w"],
    image: ImageLike,
    heads: Sequence[Head],
    params: PostprocessingConfig,
    *,
    candidates: Candidates | None = None,
    labels: Int32[np.ndarray, "h w"] | None = None,
    threads: int | None = None,
) -> Nuclei:
    """Labels, measures and outlines the nuclei of an image of any size.

    Args:
      maps: probabilities; may be memory-mapped.
      mask: pixels that belong to nuclei, see `make_mask`.
      image: uint8 RGB of the same height and width.
      heads: heads of the network in the order of `maps`.
      params: parameters of the watershed.
      candidates: whole outlines that the network proposes; None: the mask is divided.
      labels: array of zeros to fill; None: a new one.
      threads: as of `BlockPool`; results do not depend on it.

    Returns:
      The nuclei, with the labels of `label_nuclei`. Distances to the nearest neighbor are those in the whole image.
    """
    labels = np.zeros(mask.shape, np.int32) if labels is None else labels
    if candidates is not None:
        whole = find_whole(maps, mask, heads, params, candidates, labels=labels, threads=threads)
        table = whole_table(labels, maps, image, whole, threads=threads)
        return Nuclei(labels, table, whole_polygons(whole), whole)

    def described(block: Block) -> tuple[Table, list[list[Polygon]]]:
        rows, columns = block.window
        polygons = [[part.moved(columns.start, rows.start) for part in own] for own in polygons_of(block.labels)]
        return measured(block, maps, image), polygons

    with BlockPool(mask.shape, threads) as pool:
        tables, polygons = zip(*pool.map(described, _blocks(maps, mask, heads, params, labels, pool)), strict=True)
    return Nuclei(labels, joined(tables), list(itertools.chain(*polygons)))


def _blocks(
    maps: np.ndarray,
    mask: np.ndarray,
    heads: Sequence[Head],
    params: PostprocessingConfig,
    labels: np.ndarray,
    pool: BlockPool,
) -> Iterator[Block]:
    """Labels blocks in threads, and writes the nuclei of one block after the other into `labels`."""

    def labelled(place: Place) -> tuple[Place, np.ndarray]:
        return place, label_instances(np.asarray(maps[place[2]]), mask[place[2]], heads, params)

    num_before = 0
    for (start, end, window), context in pool.map(labelled, windows((labels.shape[0], labels.shape[1]))):
        top, left = window[0].start, window[1].start
        # Nuclei of earlier blocks keep their pixels: clusters longer than the margin may differ here.
        candidates = _free_parts(context, labels[window] > 0)
        centers = centroids(candidates) + (top, left)
        is_own = (centers >= start).all(axis=1) & (centers < end).all(axis=1)
        own = np.unique(candidates[candidates > 0])[is_own]
        block_labels = relabel(np.where(np.isin(candidates, own), candidates, 0))
        labels[window] = np.where(block_labels > 0, block_labels + num_before, labels[window])
        yield Block(window, block_labels, context, num_before)
        num_before += len(own)


def _free_parts(labels: np.ndarray, is_taken: np.ndarray) -> np.ndarray:
    """Leaves pixels out, and connects what is left of nuclei that lose a part of theirs."""
    lost = np.bincount(labels[is_taken], minlength=int(labels.max(initial=0)) + 1)[1:]
    if not lost.any():
        return labels
    free = np.where(is_taken, 0, labels)
    is_cut = (lost > 0) & (np.bincount(free.ravel(), minlength=len(lost) + 1)[1:] > 0)
    return connect_at_sides(free) if is_cut.any() else free


def keep_nuclei(
    nuclei: Nuclei,
    keep: Bool[np.ndarray, " n"],
    maps: np.ndarray,
    image: ImageLike,
    *,
    threads: int | None = None,
) -> Nuclei:
    """Leaves nuclei out, and measures the rest again, of which more may be seen.

    Args:
      nuclei: nuclei of an image; its label map is changed.
      keep: nuclei that stay; they are renumbered in the same order.
      maps: as for `find_nuclei`.
      image: as for `find_nuclei`.
      threads: as of `BlockPool`.
    """
    labels, polygons = nuclei.labels, [own for own, stays in zip(nuclei.polygons, keep, strict=True) if stays]
    if nuclei.whole is not None:
        whole = [own for own, stays in zip(nuclei.whole, keep, strict=True) if stays]
        for nucleus in nuclei.whole:
            labels[nucleus.extent.window] = 0
        paint_all(whole, labels)
        return Nuclei(labels, whole_table(labels, maps, image, whole, threads=threads), polygons, whole)
    numbers = np.append(0, np.where(keep, np.cumsum(keep), 0)).astype(np.int32)
    for top in range(0, len(labels), BLOCK_PX):
        labels[top : top + BLOCK_PX] = numbers[labels[top : top + BLOCK_PX]]
    owners = np.stack([nuclei.table["row"], nuclei.table["column"]], axis=1)[keep]
    return Nuclei(labels, label_table(labels, maps, image, owners, threads=threads), polygons)
