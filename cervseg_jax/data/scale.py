"""Scale of images: the size of nuclei in their own annotations, and the factor that brings it to a common size.

With `data.nucleus_px` an image is resized so that the median diameter of its nuclei is that many pixels, instead of
being resized to the network's input. Training then takes random windows of it, and validation a grid of windows.
"""

import math
from collections.abc import Callable, Sequence

import cv2
import numpy as np
from jaxtyping import Integer, UInt8

from cervseg_jax.data.decode import read_mask
from cervseg_jax.data.pairs import Pair
from cervseg_jax.data.resize import scaled_size
from cervseg_jax.data.samples import read_instances
from cervseg_jax.label_maps import distance_to_border
from cervseg_jax.runtime.threads import map_files, num_threads
from cervseg_jax.schema import DataConfig
from cervseg_jax.typing import typechecked
from cervseg_jax.watershed import watershed_labels

DEFAULT_NUCLEUS_PX = 20.0
"""Diameter for `data.nucleus_px: auto`: large enough for the outline, and small enough for a tile to hold context."""
MIN_NUCLEUS_AREA_PX = 12
"""Smaller components of masks are noise."""
MIN_NUCLEI = 3
"""With fewer nuclei the median of an image is not used."""
NECK_DEPTH = 0.15
"""How much narrower a neck between two nuclei of a mask is than the smaller nucleus, as a share."""
SCALE_RANGE = (1 / 8, 8.0)


@typechecked
def diameters(labels: Integer[np.ndarray, "h w"]) -> np.ndarray:
    """Returns the diameters of the circles with the nuclei's areas, in pixels, float64 [n]; noise is left out.

    Args:
      labels: label map, 0 for background.

    Example:
      >>> diameters(np.repeat([[0, 7]], 314, axis=0) * np.ones((1, 2), int)).round(1).tolist()
      [20.0]
    """
    areas = np.unique(labels[labels > 0], return_counts=True)[1]
    return np.sqrt(4 * areas[areas >= MIN_NUCLEUS_AREA_PX] / math.pi)


def measure_diameters(pair: Pair, data: DataConfig) -> np.ndarray:
    """Reads a pair's annotations and returns the diameters of its nuclei, as `nucleus_diameters`.

    Raises:
      DataError: if a file is bad.
    """
    mask = read_mask(pair.mask_path, rule=data.mask_rule).mask
    return nucleus_diameters(mask, None if pair.instances_path is None else read_instances(pair, mask.shape))


@typechecked
def nucleus_diameters(mask: UInt8[np.ndarray, "h w"], instances: Integer[np.ndarray, "h w"] | None) -> np.ndarray:
    """Returns the diameters of an image's annotated nuclei in pixels, float64 [n].

    A mask without labels is divided at its necks, because touching nuclei are one component.

    Args:
      mask: 1 for nucleus.
      instances: label map, 0 for background; None if there is none.
    """
    if instances is not None:
        return diameters(instances)
    elevation = cv2.GaussianBlur(distance_to_border(mask > 0), (0, 0), 1.0)
    return diameters(watershed_labels(np.maximum(elevation, 1e-6), mask > 0, min_saddle_depth=NECK_DEPTH))


def scale_pairs(
    pairs: Sequence[Pair],
    data: DataConfig,
    *,
    nucleus_px: float,
    measured: Sequence[Sequence[float]] | None = None,
    on_progress: Callable[[], None] = lambda: None,
) -> tuple[list[Pair], list[float]]:
    """Sets the factor of each pair that brings the median diameter of its nuclei to a common size.

    Images with fewer than `MIN_NUCLEI` nuclei take the median of all nuclei of their source, or else of all images.

    Args:
      pairs: image and mask files.
      data: how they are read.
      nucleus_px: median diameter after scaling, in pixels.
      measured: diameters of each pair's nuclei where they are known; None: the annotations are read.
      on_progress: called after each pair that is read.

    Returns:
      Pairs with `scale`, and the diameter in pixels that was taken for each image.

    Raises:
      DataError: if a file is bad.
    """
    if measured is None:
        sizes_of = map_files(
            lambda pair: measure_diameters(pair, data), pairs, on_progress=on_progress, threads=num_threads(data)
        )
    else:
        sizes_of = [np.asarray(sizes, np.float64) for sizes in measured]
    of_all = np.concatenate([*sizes_of, np.zeros(0)])
    by_group: dict[str, list[np.ndarray]] = {}
    for pair, found in zip(pairs, sizes_of, strict=True):
        by_group.setdefault(pair.group, []).append(found)
    chosen = []
    for pair, found in zip(pairs, sizes_of, strict=True):
        for sizes in (found, np.concatenate(by_group[pair.group]), of_all):
            if len(sizes) >= MIN_NUCLEI or sizes is of_all:
                break
        chosen.append(float(np.median(sizes)) if len(sizes) else nucleus_px)
    least, most = SCALE_RANGE
    scaled = [
        pair._replace(scale=min(most, max(least, nucleus_px / size))) for pair, size in zip(pairs, chosen, strict=True)
    ]
    return scaled, chosen


def window_pairs(pairs: Sequence[Pair], sizes: Sequence[tuple[int, int]], image_size: tuple[int, int]) -> list[Pair]:
    """Returns a pair for each window of a grid that covers the scaled images; neighbors overlap where they must.

    Args:
      pairs: pairs with `scale`.
      sizes: height and width of each image file.
      image_size: height and width of a window.

    Returns:
      Pairs with `window`, in order.

    Example:
      >>> from pathlib import Path
      >>> pair = Pair("a", "a", Path("a.png"), Path("m.png"), scale=2.0)
      >>> [item.window for item in window_pairs([pair], [(64, 100)], (128, 128))]
      [(0, 0), (0, 72)]
    """
    windows = []
    for pair, shape in zip(pairs, sizes, strict=True):
        assert pair.scale is not None  # noqa: S101 (see the arguments)
        tops, lefts = (
            _starts(length, window) for length, window in zip(scaled_size(shape, pair.scale), image_size, strict=True)
        )
        windows += [pair._replace(window=(top, left)) for top in tops for left in lefts]
    return windows


def _starts(length: int, window: int) -> list[int]:
    """Returns evenly spaced offsets of windows that cover an axis; 0 alone where it is shorter than a window."""
    count = max(1, math.ceil(length / window))
    return [0] if count == 1 else [round(index * (length - window) / (count - 1)) for index in range(count)]
