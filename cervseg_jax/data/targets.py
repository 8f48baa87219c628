"""Computes the targets of a network's heads from instance labels."""

from collections.abc import Callable, Mapping, Sequence

import cv2
import numpy as np
from jaxtyping import Float32, Integer, UInt8

from cervseg_jax.data.rays import ray_targets
from cervseg_jax.heads import Head
from cervseg_jax.label_maps import distance_to_border, inner_borders
from cervseg_jax.typing import typechecked

BOUNDARY_PX = 2
"""Width of the boundary inside a nucleus."""
TOUCHING_PX = 2
"""Pixels count as touching if two nuclei lie within this distance."""


@typechecked
def target_maps(
    instances: Integer[np.ndarray, "h w"],
    heads: Sequence[Head],
    covered: Sequence[Integer[np.ndarray, "h w"]] = (),
) -> UInt8[np.ndarray, "h w maps"]:
    """Returns the targets of all heads except the mask.

    Args:
      instances: labels, 0 for background.
      heads: the network's heads; "mask" is skipped.
      covered: label maps of the nuclei that are partly covered, see `extents`; for the head "rays".

    Returns:
      Maps in the order of the heads, 255 for 1.0.
    """
    labels = instances.astype(np.float32)  # OpenCV has no int32 morphology; exact up to 2^24 nuclei
    maps = [
        ray_targets(instances, covered) if head == "rays" else TARGETS[head](labels) for head in heads if head != "mask"
    ]
    return np.concatenate(maps, axis=2) if maps else np.zeros((*instances.shape, 0), np.uint8)


@typechecked
def touching_pixels(instances: Integer[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    """Returns 1 for pixels within `TOUCHING_PX` of two different nuclei, else 0.

    Reference: repositions the border weights of Ronneberger et al. 2015, arXiv:1505.04597, equation 2.
    """
    labels = instances.astype(np.float32)
    side = 2 * TOUCHING_PX + 1
    kernel = np.ones((side, side), np.uint8)
    largest = cv2.dilate(labels, kernel, borderValue=0)
    top = float(labels.max()) + 1
    smallest = top - cv2.dilate(np.where(labels > 0, top - labels, 0).astype(np.float32), kernel, borderValue=0)
    return ((largest > 0) & (smallest < top) & (largest != smallest)).astype(np.uint8)


def _depth(labels: Float32[np.ndarray, "h w"]) -> Float32[np.ndarray, "h w"]:
    """Returns the distance of each nucleus pixel to the nearest pixel outside its nucleus, 1 along its border."""
    core = (labels > 0) & ~inner_borders(labels)
    depth = distance_to_border(core)
    return np.where(labels > 0, depth + 1, 0).astype(np.float32)


def _boundary(labels: np.ndarray) -> np.ndarray:
    depth = _depth(labels)
    return np.where((depth > 0) & (depth <= BOUNDARY_PX), np.uint8(255), np.uint8(0))[..., None]


def _distance(labels: np.ndarray) -> np.ndarray:
    depth = _depth(labels)
    _, index = np.unique(labels, return_inverse=True)
    index = index.reshape(labels.shape)
    largest = np.zeros(index.max() + 1, np.float32)
    np.maximum.at(largest, index, depth)
    return np.rint(255 * depth / np.maximum(largest[index], 1)).astype(np.uint8)[..., None]


def _hover(labels: np.ndarray) -> np.ndarray:
    numbers, index = np.unique(labels, return_inverse=True)
    index = index.reshape(labels.shape)
    areas = np.bincount(index.ravel(), minlength=len(numbers))
    maps = []
    for positions in (np.arange(labels.shape[1])[None, :], np.arange(labels.shape[0])[:, None]):
        positions = np.broadcast_to(positions, labels.shape).astype(np.float64)
        center = np.bincount(index.ravel(), positions.ravel(), len(numbers)) / areas
        offset = positions - center[index]
        furthest = np.zeros(len(numbers))
        np.maximum.at(furthest, index, np.abs(offset))
        maps.append(0.5 + 0.5 * offset / np.maximum(furthest[index], 1))
    return np.where(labels[..., None] > 0, np.rint(255 * np.stack(maps, axis=2)), 128).astype(np.uint8)


TARGETS: Mapping[Head, Callable[[np.ndarray], np.ndarray]] = {
    "boundary": _boundary,
    "distance": _distance,
    "hover": _hover,
}
"""Functions from labels, float32 [h, w], to targets, uint8 [h, w, maps], by head; "rays" also need what is covered."""
