"""Targets of a network's heads, from instance labels."""

from collections.abc import Callable, Mapping, Sequence

import cv2
import numpy as np

from cervseg_jax.heads import Head

BOUNDARY_PX = 2
"""Thickness of the boundary, inside the nucleus."""
TOUCHING_PX = 2
"""How near a pixel between two nuclei must be to both."""

_THREE = np.ones((3, 3), np.uint8)


def target_maps(instances: np.ndarray, heads: Sequence[Head]) -> np.ndarray:
    """Makes the targets of all heads but the mask.

    Args:
      instances: integer labels [h, w], 0 for background.
      heads: the network's; "mask" is passed over.

    Returns:
      uint8 [h, w, maps], 255 for 1.0.
    """
    labels = instances.astype(np.float32)  # exact up to 2^24 nuclei, and what OpenCV takes
    maps = [TARGETS[head](labels) for head in heads if head != "mask"]
    return np.concatenate(maps, axis=2) if maps else np.zeros((*instances.shape, 0), np.uint8)


def touching_pixels(instances: np.ndarray) -> np.ndarray:
    """Marks pixels within two pixels of two different nuclei; uint8 [h, w], 0 or 1.

    Reference: in place of the border weights of Ronneberger et al. 2015, arXiv:1505.04597, equation 2.
    """
    labels = instances.astype(np.float32)
    side = 2 * TOUCHING_PX + 1
    kernel = np.ones((side, side), np.uint8)
    largest = cv2.dilate(labels, kernel, borderValue=0)
    top = float(labels.max()) + 1
    smallest = top - cv2.dilate(np.where(labels > 0, top - labels, 0).astype(np.float32), kernel, borderValue=0)
    return ((largest > 0) & (smallest < top) & (largest != smallest)).astype(np.uint8)


def _own_depth(labels: np.ndarray) -> np.ndarray:
    """Distance of each nucleus' pixels to the nearest pixel of anything else, 1 at its border; float32."""
    largest, smallest = cv2.dilate(labels, _THREE), cv2.erode(labels, _THREE)
    core = (labels > 0) & (largest == labels) & (smallest == labels)
    depth = cv2.distanceTransform(core.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.where(labels > 0, depth + 1, 0).astype(np.float32)


def _boundary(labels: np.ndarray) -> np.ndarray:
    depth = _own_depth(labels)
    return np.where((depth > 0) & (depth <= BOUNDARY_PX), np.uint8(255), np.uint8(0))[..., None]


def _distance(labels: np.ndarray) -> np.ndarray:
    depth = _own_depth(labels)
    _, number = np.unique(labels, return_inverse=True)
    number = number.reshape(labels.shape)
    deepest = np.zeros(number.max() + 1, np.float32)
    np.maximum.at(deepest, number, depth)
    return np.rint(255 * depth / np.maximum(deepest[number], 1)).astype(np.uint8)[..., None]


def _hover(labels: np.ndarray) -> np.ndarray:
    found, number = np.unique(labels, return_inverse=True)
    number = number.reshape(labels.shape)
    areas = np.bincount(number.ravel(), minlength=len(found))
    maps = []
    for places in (np.arange(labels.shape[1])[None, :], np.arange(labels.shape[0])[:, None]):
        places = np.broadcast_to(places, labels.shape).astype(np.float64)
        center = np.bincount(number.ravel(), places.ravel(), len(found)) / areas
        offset = places - center[number]
        furthest = np.zeros(len(found))
        np.maximum.at(furthest, number, np.abs(offset))
        maps.append(0.5 + 0.5 * offset / np.maximum(furthest[number], 1))
    return np.where(labels[..., None] > 0, np.rint(255 * np.stack(maps, axis=2)), 128).astype(np.uint8)


TARGETS: Mapping[Head, Callable[[np.ndarray], np.ndarray]] = {
    "boundary": _boundary,
    "distance": _distance,
    "hover": _hover,
}
"""From labels as float32 [h, w] to uint8 [h, w, maps]."""
