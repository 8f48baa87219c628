"""The whole nuclei of an image of any size.

Outlines are chosen in the whole image at once, so that there are no seams, and fitted to the mask block by block.
"""

import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int32

from cervseg_jax.annotations.polygons import Polygon, polygons_of
from cervseg_jax.extents import Extent, paint
from cervseg_jax.heads import Head
from cervseg_jax.schema import PostprocessingConfig
from cervseg_jax.segmentation.blocks import BlockPool, Place, label_table, windows
from cervseg_jax.segmentation.candidates import Candidates
from cervseg_jax.segmentation.images import ImageLike
from cervseg_jax.segmentation.morphometry import Table
from cervseg_jax.segmentation.suppression import Proposals, suppress
from cervseg_jax.segmentation.whole import WholeNucleus, whole_nuclei
from cervseg_jax.typing import typechecked


@typechecked
def find_whole(
    maps: Float[np.ndarray, "h w maps"],
    mask: Bool[np.ndarray, "h w"],
    heads: Sequence[Head],
    params: PostprocessingConfig,
    candidates: Candidates,
    *,
    labels: Int32[np.ndarray, "h w"],
    threads: int | None = None,
) -> list[WholeNucleus]:
    """Finds whole nuclei in an image of any size, and paints their parts of the mask into its label map.

    A nucleus whose part has fewer than `min_area_px` pixels is left out.

    Args:
      maps: probabilities; may be memory-mapped.
      mask: pixels that belong to nuclei.
      heads: heads of the network in the order of `maps`.
      params: parameters of suppression and watershed.
      candidates: whole outlines that the network proposes.
      labels: array of zeros to fill.
      threads: as of `BlockPool`.

    Returns:
      The nuclei in the order of their labels 1..n, which is the reading order of their first pixels that are seen.
    """
    shape = (mask.shape[0], mask.shape[1])
    proposals = Proposals(candidates, shape=shape, min_score=params.min_score)
    detections = suppress(proposals, min_score=params.min_score, max_iou=params.max_iou)

    def found_in(place: Place) -> list[WholeNucleus]:
        start, end, window = place
        found = []
        top, left = window[0].start, window[1].start
        local = [
            detection._replace(extent=_cut(detection.extent, window))
            for detection in detections
            if _meets(detection.extent, window)
        ]
        for nucleus in whole_nuclei(np.asarray(maps[window]), mask[window], heads, params, local):
            placed = nucleus._replace(extent=nucleus.extent.moved(top, left), seen=nucleus.seen.moved(top, left))
            center = _middle(placed.extent)
            if (center >= start).all() and (center < end).all():
                found.append(placed)
        return found

    with BlockPool(shape, threads) as pool:
        found = list(itertools.chain.from_iterable(pool.map(found_in, windows(shape))))
    found.sort(key=lambda nucleus: (nucleus.extent.top, nucleus.extent.left, nucleus.extent.area))
    seen = paint_all(found, labels)
    for nucleus in found:
        labels[nucleus.extent.window] = 0
    kept = [
        found[index] for index in np.argsort(seen[:, 1], kind="stable") if seen[index, 0] >= max(1, params.min_area_px)
    ]
    paint_all(kept, labels)
    return kept


def paint_all(nuclei: Sequence[WholeNucleus], labels: np.ndarray) -> np.ndarray:
    """Paints nuclei as labels 1..n: what is hidden beneath, smaller ones on top, then the parts of all.

    Returns:
      How many pixels of each are seen, and the place of the first one, int64 [n, 2].
    """
    paint({label: nucleus.extent for label, nucleus in enumerate(nuclei, start=1)}, labels)
    paint({label: nucleus.seen for label, nucleus in enumerate(nuclei, start=1)}, labels)
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


def whole_table(
    labels: np.ndarray,
    maps: np.ndarray,
    image: ImageLike,
    whole: Sequence[WholeNucleus],
    *,
    threads: int | None = None,
) -> Table:
    """Measures what is seen of whole nuclei, and adds their whole areas.

    Args:
      labels: label map that the nuclei are painted into.
      maps: probabilities, the mask first; may be memory-mapped.
      image: uint8 RGB of the same height and width.
      whole: the nuclei in the order of their labels.
      threads: as of `BlockPool`.
    """
    owners = np.array([_middle(nucleus.extent) for nucleus in whole]).reshape(-1, 2)
    table = label_table(labels, maps, image, owners, threads=threads)
    table["whole_area_px"] = np.array([nucleus.extent.area for nucleus in whole], np.int64)
    return table


def whole_polygons(whole: Sequence[WholeNucleus]) -> list[list[Polygon]]:
    """Traces whole nuclei."""
    polygons = []
    for nucleus in whole:
        (own,) = polygons_of(nucleus.extent.inside.astype(np.int32))
        polygons.append([polygon.moved(nucleus.extent.left, nucleus.extent.top) for polygon in own])
    return polygons
