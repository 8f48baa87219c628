"""Augmentation of training samples, in numpy and OpenCV.

An operation is `(sample, rng, **args) -> sample`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from cervseg_jax.data.geometric import affine, bulge, crop, elastic, flip, rotate90, shrink
from cervseg_jax.data.overlap import overlap
from cervseg_jax.data.photometric import blur, color, gray, jpeg, noise, reinhard, sharpen, stain
from cervseg_jax.data.samples import Sample, map_sample

Operation = Callable[..., Sample]

AUGMENTATIONS: Mapping[str, Operation] = {
    "flip": flip,
    "rotate90": rotate90,
    "affine": affine,
    "crop": crop,
    "shrink": shrink,
    "elastic": elastic,
    "bulge": bulge,
    "overlap": overlap,
    "color": color,
    "stain": stain,
    "blur": blur,
    "sharpen": sharpen,
    "noise": noise,
    "gray": gray,
    "jpeg": jpeg,
    "reinhard": reinhard,
}
"""Operations by config name."""


def apply_operations(
    sample: Sample, rng: np.random.Generator, operations: Sequence[tuple[Operation, float, Mapping[str, Any]]]
) -> Sample:
    """Applies operations in order, each with its probability.

    Args:
      sample: image and mask.
      rng: generator of this sample; the result depends on its seed only.
      operations: (function, probability, keyword arguments).

    Returns:
      A sample of the same size, in contiguous arrays.
    """
    for function, probability, args in operations:
        if rng.random() < probability:
            sample = function(sample, rng, **args)
    return map_sample(sample, np.ascontiguousarray, np.ascontiguousarray)
