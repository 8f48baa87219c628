"""Test-time augmentation: the mean over flipped and transposed copies of an image."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from cervseg_jax.engine.predict import Predict
from cervseg_jax.heads import NUM_RAYS, Head, channels


def with_tta(predict: Predict, heads: Sequence[Head]) -> Predict:
    """Returns a prediction that averages over the symmetries of the network's input.

    Args:
      predict: function from uint8 [b, h, w, 3] to probabilities [b, h, w, maps].
      heads: heads of the network; the coordinates of "hover" and the directions of "rays" are transformed back as well.

    Returns:
      A function of the same signature: the mean over the eight symmetries of a square input, or the four of a
      rectangular one.
    """

    def averaged(images: UInt8[np.ndarray, "b h w 3"]) -> Float32[np.ndarray, "b h w maps"]:
        transposes = (False, True) if images.shape[1] == images.shape[2] else (False,)
        total: Any = 0.0
        for flips in itertools.product(transposes, (False, True), (False, True)):
            total = total + _restored(predict(_transformed(images, *flips)), heads, *flips)
        return np.asarray(total / (4 * len(transposes)), np.float32)

    return averaged


def _transformed(images: np.ndarray, transpose: bool, down: bool, across: bool) -> np.ndarray:
    turned = images.swapaxes(1, 2) if transpose else images
    return np.ascontiguousarray(turned[:, :: -1 if down else 1, :: -1 if across else 1])


def _restored(maps: np.ndarray, heads: Sequence[Head], transpose: bool, down: bool, across: bool) -> np.ndarray:
    maps = maps[:, :: -1 if down else 1, :: -1 if across else 1].copy()
    if "hover" in heads:
        where = channels(heads, "hover")
        for channel, mirrored in ((where.start, across), (where.start + 1, down)):
            if mirrored:
                maps[..., channel] = 1.0 - maps[..., channel]
        if transpose:
            maps[..., where] = maps[..., where][..., ::-1]
    if "rays" in heads:
        where = channels(heads, "rays")
        maps[..., where.start + 1 : where.stop] = maps[..., where.start + 1 + _ray_order(transpose, down, across)]
    return maps.swapaxes(1, 2) if transpose else maps


def _ray_order(transpose: bool, down: bool, across: bool) -> np.ndarray:
    """Returns for each direction in the image which ray of its mirrored and then transposed copy has it."""
    order = np.arange(NUM_RAYS)
    if transpose:  # the angle from the right, clockwise, becomes 90 degrees minus it
        order = (NUM_RAYS // 4 - order) % NUM_RAYS
    if across:
        order = (NUM_RAYS // 2 - order) % NUM_RAYS
    return -order % NUM_RAYS if down else order
