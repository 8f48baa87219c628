"""Initial weights drawn by NumPy.

Keras on JAX compiles one program per distinct shape to draw initial weights, which takes most of the time of building
a deep network.
"""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from scipy.special import ndtr, ndtri

TRUNCATED_STD = 0.87962566103423978
"""Standard deviation of a unit normal distribution cut at two standard deviations."""


class NumpyVarianceScaling(keras.initializers.VarianceScaling):
    """`keras.initializers.VarianceScaling` that draws with NumPy.

    Reference: He et al. 2015, arXiv:1502.01852, section 2.2; Glorot and Bengio 2010, section 4.2.
    """

    def __call__(self, shape: Sequence[int], dtype: Any = None) -> Any:
        """Draws a float32 array of `shape`, [..., inputs, outputs]."""
        receptive = float(np.prod(shape[:-2]))
        fan_in, fan_out = shape[-2] * receptive, shape[-1] * receptive
        fan = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}[self.mode]
        std = np.sqrt(self.scale / max(1.0, fan))
        seed: Any = self.seed
        uniform = np.random.default_rng(seed).random(tuple(shape), np.float32)
        if self.distribution == "uniform":
            values = np.sqrt(3) * std * (2 * uniform - 1)
        else:
            low = ndtr(-2.0)
            values = std / TRUNCATED_STD * ndtri(low + (1 - 2 * low) * uniform)
        return values.astype(np.float32)


class NumpyGlorotUniform(NumpyVarianceScaling, keras.initializers.GlorotUniform):
    """`keras.initializers.GlorotUniform` that draws with NumPy."""


class NumpyHeNormal(NumpyVarianceScaling, keras.initializers.HeNormal):
    """`keras.initializers.HeNormal` that draws with NumPy."""


class ZeroVarianceScaling(keras.initializers.VarianceScaling):
    """`keras.initializers.VarianceScaling` that returns zeros, for networks of which only shapes are needed."""

    def __call__(self, shape: Sequence[int], dtype: Any = None) -> Any:
        """Returns zeros."""
        return keras.ops.zeros(tuple(shape), dtype or "float32")


class ZeroGlorotUniform(ZeroVarianceScaling, keras.initializers.GlorotUniform):
    """`keras.initializers.GlorotUniform` that returns zeros."""


class ZeroHeNormal(ZeroVarianceScaling, keras.initializers.HeNormal):
    """`keras.initializers.HeNormal` that returns zeros."""


def _by_keras_name(scaling: type, glorot_uniform: type, he_normal: type) -> dict[str, type]:
    return {
        "VarianceScaling": scaling,
        "GlorotUniform": glorot_uniform,
        "glorot_uniform": glorot_uniform,
        "HeNormal": he_normal,
        "he_normal": he_normal,
    }


INITIALIZERS = (NumpyVarianceScaling, NumpyGlorotUniform, NumpyHeNormal)
_ZERO_INITIALIZERS = (ZeroVarianceScaling, ZeroGlorotUniform, ZeroHeNormal)
NUMPY_INITIALIZERS = {kind.__name__: kind for kind in INITIALIZERS} | _by_keras_name(*INITIALIZERS)
"""For `keras.utils.custom_object_scope`: replaces Keras' own initializers by name."""
ZERO_INITIALIZERS = {kind.__name__: kind for kind in _ZERO_INITIALIZERS} | _by_keras_name(*_ZERO_INITIALIZERS)
"""Likewise."""
