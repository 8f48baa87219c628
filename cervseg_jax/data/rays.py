"""Targets of the head "rays": how central each pixel lies in a whole nucleus, and its distances to the outline.

Where nuclei overlap, a pixel belongs to the nucleus in which it lies deeper, relative to that nucleus' own largest
depth: both keep the pixels around their middle, whichever lies on top.

Reference: Schmidt et al. 2018, arXiv:1806.03535, section 2.1, with whole instead of visible nuclei.
"""

import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Integer, UInt8

from cervseg_jax.extents import Extent, extents_of
from cervseg_jax.heads import NUM_RAYS, RAY_UNIT_PX
from cervseg_jax.label_maps import distance_to_border
from cervseg_jax.typing import typechecked

STRIDE = 2
"""Rays are given for every second pixel of every second row: neighbors hardly differ."""
MIN_CENTRALITY = 0.15
"""Rays are given for pixels that lie at least this deep: outlines are not taken from the others."""
REACH_PX = 96
"""Rays that have not left their nucleus after this length are unknown."""


def directions() -> Float[np.ndarray, "rays 2"]:
    """Returns steps of length one, down and right: the first to the right, the others clockwise on the screen."""
    angles = 2 * np.pi * np.arange(NUM_RAYS) / NUM_RAYS
    return np.stack([np.sin(angles), np.cos(angles)], axis=1)


def encode_lengths(lengths: np.ndarray) -> np.ndarray:
    """Returns ray lengths in pixels, 0 or more, as shares in [0, 1)."""
    return lengths / (lengths + RAY_UNIT_PX)


def decode_lengths(shares: np.ndarray) -> np.ndarray:
    """Returns the lengths in pixels of shares in [0, 1]; 1 is taken for a little less.

    Example:
      >>> decode_lengths(encode_lengths(np.array([0.0, 8.0, 24.0]))).tolist()
      [0.0, 8.0, 24.0]
    """
    shares = np.minimum(np.asarray(shares, np.float64), 1 - 1e-3)
    return RAY_UNIT_PX * shares / (1.0 - shares)


@typechecked
def ray_targets(
    labels: Integer[np.ndarray, "h w"], covered: Sequence[Integer[np.ndarray, "h w"]] = ()
) -> UInt8[np.ndarray, "h w maps"]:
    """Returns centrality and rays.

    Args:
      labels: label map.
      covered: label maps of the nuclei that are partly covered, see `extents`.

    Returns:
      First the depth of each pixel in its nucleus as a share of the largest, 255 for 1.0; then its distances to the
      outline by `encode_lengths`, 255 for 1.0, or 0 where they are not known: outside of nuclei, near outlines,
      between the pixels of `STRIDE`, and where a ray leaves the image before it leaves the nucleus.
    """
    shape = labels.shape
    centrality = np.zeros(shape, np.float32)
    owner = np.zeros(shape, np.int32)
    whole = list(extents_of(labels, covered).values())
    for index, extent in enumerate(whole, start=1):
        depth = _relative_depth(extent, shape)
        own = centrality[extent.window]
        deeper = depth > own
        own[deeper] = depth[deeper]
        owner[extent.window][deeper] = index
    maps = np.zeros((*shape, 1 + NUM_RAYS), np.uint8)
    maps[..., 0] = np.rint(255 * centrality)
    kept = np.zeros(shape, bool)
    kept[::STRIDE, ::STRIDE] = centrality[::STRIDE, ::STRIDE] >= MIN_CENTRALITY
    for index, extent in enumerate(whole, start=1):
        rows, columns = np.nonzero((owner[extent.window] == index) & kept[extent.window])
        if len(rows):
            rays = _rays(extent, shape, rows, columns)
            maps[extent.top + rows, extent.left + columns, 1:] = rays
    return maps


def _relative_depth(extent: Extent, shape: tuple[int, ...]) -> np.ndarray:
    """Returns the distance of a nucleus' pixels to the outside as a share of the largest; the image's edge is none."""
    height, width = extent.inside.shape
    at_edge = (
        extent.top == 0,
        extent.top + height == shape[0],
        extent.left == 0,
        extent.left + width == shape[1],
    )
    pads = [0 if edge else 1 for edge in at_edge]
    padded = np.pad(extent.inside, (pads[:2], pads[2:]))
    depth = distance_to_border(padded)
    depth = depth[pads[0] : pads[0] + height, pads[2] : pads[2] + width]
    return depth / max(float(depth.max()), 1.0)


@functools.lru_cache(maxsize=8)
def _steps(width: int) -> np.ndarray:
    """Offsets in a flattened array of that width to half-pixel steps along each ray, int32 [steps, rays]."""
    lengths = np.arange(1, 2 * REACH_PX + 1) / 2
    places = np.rint(lengths[:, None, None] * directions()).astype(np.int32)
    return places[..., 0] * width + places[..., 1]


def _rays(extent: Extent, shape: tuple[int, ...], rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Returns encoded rays of some pixels of a nucleus, uint8 [n, rays]; 0 where they leave the image."""
    height, width = extent.inside.shape
    reach = min(REACH_PX, int(np.hypot(height, width)) + 2)
    # 0 outside, 1 inside, 2 beyond the image; the width is rounded up so that few tables of steps are made.
    stride = -(-(width + 2 * reach) // 64) * 64
    area = np.zeros((height + 2 * reach, stride), np.uint8)
    area[reach : reach + height, reach : reach + width] = extent.inside
    top, left = reach - extent.top, reach - extent.left
    area[: max(0, top)] = 2
    area[max(0, top + shape[0]) :] = 2
    area[:, : max(0, left)] = 2
    area[:, max(0, left + shape[1]) :] = 2
    flat = area.ravel()
    steps = _steps(stride)
    lengths = np.zeros((len(rows), NUM_RAYS), np.float32)
    start = ((rows + reach) * stride + columns + reach).astype(np.int32)
    point, ray = (index.ravel() for index in np.indices(lengths.shape))
    for step in range(2, 2 * reach - 1, 2):  # whole pixels; the half before is looked at where a ray ends
        met = flat[start[point] + steps[step - 1, ray]]
        left_nucleus = met != 1
        gone = np.flatnonzero(left_nucleus)
        if len(gone):
            half = flat[start[point[gone]] + steps[step - 2, ray[gone]]] != 1
            lengths[point[gone], ray[gone]] = np.where(met[gone] == 2, np.nan, step / 2 - 0.25 - 0.5 * half)
            point, ray = point[~left_nucleus], ray[~left_nucleus]
        if not len(point):
            break
    lengths[point, ray] = np.nan  # longer than the reach
    encoded = np.clip(np.rint(255 * encode_lengths(np.maximum(lengths, 0.25))), 1, 254)
    return np.where(np.isnan(lengths), 0, encoded).astype(np.uint8)
