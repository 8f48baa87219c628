"""The nuclei of a whole image: label map, measurements and outlines, block by block.

Each block is processed with a margin, and keeps the nuclei whose centroid lies in it: a nucleus on a seam is seen whole
by one block and counted once. Nuclei that are whole where they overlap are chosen in the whole image at once, and
fitted to the mask block by block.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int32

from cervseg_jax.annotations.polygons import Polygon, polygons_of
from cervseg_jax.extents import Extent, paint
from cervseg_jax.heads import Head
from cervseg_jax.label_maps import centroids
from cervseg_jax.schema import PostprocessingConfig
from cervseg_jax.segmentation.candidates import Candidates
from cervseg_jax.segmentation.images import ImageLike
from cervseg_jax.segmentation.instances import connect_at_sides, label_instances, relabel
from cervseg_jax.segmentation.morphometry import Table, measure, nearest_distances
from cervseg_jax.segmentation.suppression import Proposals, suppress
from cervseg_jax.segmentation.whole import WholeNucleus, whole_nuclei
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
    """Columns of `morphometry.COLUMNS`, and of `morphometry.WHOLE_COLUMNS` where nuclei are whole."""
    polygons: list[list[Polygon]]
    """Outlines; where nuclei are whole they may overlap."""
    whole: list[WholeNucleus] | None = None
    """The whole nuclei; None where nuclei are what the label map shows."""

    @property
    def extents(self) -> list[Extent] | None:
        """Pixels of the whole nuclei; None where nuclei are what the label map shows."""
        return None if self.whole is None else [nucleus.extent for nucleus in self.whole]


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
    candidates: Candidates | None = None,
    labels: Int32[np.ndarray, "h w"] | None = None,
) -> Int32[np.ndarray, "h w"]:
    """Labels the nuclei of an image of any size.

    Args:
      maps: probabilities; may be memory-mapped.
      mask: pixels that belong to nuclei, see `make_mask`.
      heads: heads of the network in the order of `maps`.
      params: parameters of the watershed.
      candidates: whole outlines that the network proposes; None: the mask is divided.
      labels: array of zeros to fill; None: a new one.

    Returns:
      Labels 1..n, 0 for background.
    """
    labels = np.zeros(mask.shape, np.int32) if labels is None else labels
    if candidates is not None:
        find_whole(maps, mask, heads, params, candidates, labels=labels)
        return labels
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
    candidates: Candidates | None = None,
    labels: Int32[np.ndarray, "h w"] | None = None,
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

    Returns:
      The nuclei, with the labels of `label_nuclei`. Distances to the nearest neighbor are those in the whole image.
    """
    labels = np.zeros(mask.shape, np.int32) if labels is None else labels
    if candidates is not None:
        whole = find_whole(maps, mask, heads, params, candidates, labels=labels)
        return Nuclei(labels, _whole_table(labels, maps, image, whole), _whole_polygons(whole), whole)
    tables: list[Table] = []
    polygons: list[list[Polygon]] = []
    for block in _blocks(maps, mask, heads, params, labels):
        tables.append(_measured(block, maps, image))
        polygons += [[polygon.moved(block.left, block.top) for polygon in own] for own in polygons_of(block.labels)]
    return Nuclei(labels, _joined(tables), polygons)


def _joined(tables: Sequence[Table]) -> Table:
    """Joins the tables of all blocks, in the order of the labels."""
    table = {name: np.concatenate([own[name] for own in tables]) for name in tables[0]}
    order = np.argsort(table["label"], kind="stable")
    table = {name: values[order] for name, values in table.items()}
    table["nearest_px"] = nearest_distances(np.stack([table["row"], table["column"]], axis=1))
    return table


@typechecked
def find_whole(
    maps: Float[np.ndarray, "h w maps"],
    mask: Bool[np.ndarray, "h w"],
    heads: Sequence[Head],
    params: PostprocessingConfig,
    candidates: Candidates,
    *,
    labels: Int32[np.ndarray, "h w"],
) -> list[WholeNucleus]:
    """Finds whole nuclei in an image of any size, and paints them into its label map, the smaller ones on top.

    A nucleus of which fewer than `min_area_px` pixels would be seen is left out.

    Args:
      maps: probabilities; may be memory-mapped.
      mask: pixels that belong to nuclei.
      heads: heads of the network in the order of `maps`.
      params: parameters of suppression and watershed.
      candidates: whole outlines that the network proposes.
      labels: array of zeros to fill.

    Returns:
      The nuclei in the order of their labels 1..n, which is the reading order of their first pixels that are seen.
    """
    shape = (mask.shape[0], mask.shape[1])
    proposals = Proposals(candidates, shape=shape, min_score=params.min_score)
    detections = suppress(proposals, min_score=params.min_score, max_iou=params.max_iou)
    centers = np.array([_middle(detection.extent) for detection in detections]).reshape(-1, 2)
    found: list[WholeNucleus] = []
    for start, end, window in _windows(shape):
        top, left = window[0].start, window[1].start
        near = [index for index, detection in enumerate(detections) if _meets(detection.extent, window)]
        local = [detections[index]._replace(extent=_cut(detections[index].extent, window)) for index in near]
        for nucleus in whole_nuclei(np.asarray(maps[window]), mask[window], heads, params, local):
            placed = nucleus._replace(extent=nucleus.extent.moved(top, left))
            center = _middle(placed.extent) if nucleus.source < 0 else centers[near[nucleus.source]]
            if (center >= start).all() and (center < end).all():
                found.append(placed)
    found.sort(key=lambda nucleus: (nucleus.extent.top, nucleus.extent.left, nucleus.extent.area))
    seen = _paint_all(found, labels)
    for nucleus in found:
        labels[nucleus.extent.window] = 0
    kept = [
        found[index] for index in np.argsort(seen[:, 1], kind="stable") if seen[index, 0] >= max(1, params.min_area_px)
    ]
    _paint_all(kept, labels)
    return kept


def _paint_all(nuclei: Sequence[WholeNucleus], labels: np.ndarray) -> np.ndarray:
    """Paints nuclei as labels 1..n; returns how many pixels of each are seen, and the place of the first one."""
    paint({label: nucleus.extent for label, nucleus in enumerate(nuclei, start=1)}, labels)
    seen = np.zeros((len(nuclei), 2), np.int64)
    for label, nucleus in enumerate(nuclei, start=1):
        rows, columns = np.nonzero(labels[nucleus.extent.window] == label)
        if len(rows):
            seen[label - 1] = (
                len(rows),
                (nucleus.extent.top + rows[0]) * labels.shape[1] + nucleus.extent.left + columns[0],
            )
    return seen


def _middle(extent: Extent) -> np.ndarray:
    return np.array([extent.top, extent.left]) + np.array(extent.inside.shape) / 2


def _meets(extent: Extent, window: tuple[slice, slice]) -> bool:
    return all(own.start < its.stop and its.start < own.stop for own, its in zip(extent.window, window, strict=True))


def _cut(extent: Extent, window: tuple[slice, slice]) -> Extent:
    """Returns the part of an extent within a window, at its place in the window."""
    top, left = max(extent.top, window[0].start), max(extent.left, window[1].start)
    bottom, right = min(extent.window[0].stop, window[0].stop), min(extent.window[1].stop, window[1].stop)
    inside = extent.inside[top - extent.top : bottom - extent.top, left - extent.left : right - extent.left]
    return Extent(top - window[0].start, left - window[1].start, inside)


def _whole_table(labels: np.ndarray, maps: np.ndarray, image: ImageLike, whole: Sequence[WholeNucleus]) -> Table:
    """Measures what is seen of whole nuclei block by block, and adds their whole areas."""
    tables: list[Table] = []
    owners = np.array([_middle(nucleus.extent) for nucleus in whole]).reshape(-1, 2)
    for start, end, window in _windows((labels.shape[0], labels.shape[1])):
        own = 1 + np.flatnonzero((owners >= start).all(axis=1) & (owners < end).all(axis=1))
        context = np.asarray(labels[window])
        block_labels = np.where(np.isin(context, own), context, 0)
        tables.append(
            _measured(_Block(window[0].start, window[1].start, window, block_labels, context, 0), maps, image)
        )
    table = _joined(tables)
    table["whole_area_px"] = np.array([nucleus.extent.area for nucleus in whole], np.int64)
    return table


def _whole_polygons(whole: Sequence[WholeNucleus]) -> list[list[Polygon]]:
    """Traces whole nuclei."""
    polygons = []
    for nucleus in whole:
        (own,) = polygons_of(nucleus.extent.inside.astype(np.int32))
        polygons.append([polygon.moved(nucleus.extent.left, nucleus.extent.top) for polygon in own])
    return polygons


def _windows(shape: tuple[int, int]) -> Iterator[tuple[np.ndarray, np.ndarray, tuple[slice, slice]]]:
    """Yields first and end pixel of each block, and the block with its margin."""
    for first_row in range(0, shape[0], BLOCK_PX):
        for first_column in range(0, shape[1], BLOCK_PX):
            start = np.array((first_row, first_column))
            end = np.minimum(start + BLOCK_PX, shape)
            top, left = np.maximum(0, start - HALO_PX).tolist()
            bottom, right = np.minimum(shape, end + HALO_PX).tolist()
            yield start, end, np.s_[top:bottom, left:right]


def _blocks(
    maps: np.ndarray, mask: np.ndarray, heads: Sequence[Head], params: PostprocessingConfig, labels: np.ndarray
) -> Iterator[_Block]:
    """Labels one block after the other and writes its nuclei into `labels`."""
    num_before = 0
    for start, end, window in _windows((labels.shape[0], labels.shape[1])):
        top, left = window[0].start, window[1].start
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
