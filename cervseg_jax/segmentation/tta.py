"""Test-time augmentation: the mean over flipped and transposed copies of an image."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from cervseg_jax.engine.predict import Predict
from cervseg_jax.heads import Head, channels


def with_tta(predict: Predict, heads: Sequence[Head]) -> Predict:
    """Returns a prediction that averages over the symmetries of the network's input.

    Args:
      predict: function from uint8 [b, h, w, 3] to probabilities [b, h, w, maps].
      heads: heads of the network; the coordinates of "hover" are transformed back as well.

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
    return maps.swapaxes(1, 2) if transpose else maps
