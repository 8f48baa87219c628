"""The Keras layer that computes a convolution with the implementation for its backend."""

from typing import Any

import jax.numpy as jnp
import keras

from cervseg_jax.models.layers.backend import WithBackend
from cervseg_jax.models.layers.conv.cpu import convolve_on_cpu
from cervseg_jax.models.layers.conv.patches import convolve_patches
from cervseg_jax.models.layers.conv.select import ConvShape, choose


class SameConv2D(WithBackend, keras.layers.Conv2D):
    """`keras.layers.Conv2D` with an implementation chosen by backend and shape."""

    def convolution_op(self, inputs: Any, kernel: Any) -> Any:
        """Convolves [b, h, w, c] with [k, k, c, f]."""
        is_plain = self.strides == (1, 1) and self.padding == "same" and self.groups == 1
        implementation = choose(self.backend, ConvShape.of(inputs.shape, kernel.shape)) if is_plain else "xla"
        if implementation == "xla":
            return super().convolution_op(inputs, kernel)
        convolve = convolve_patches if implementation == "patches" else convolve_on_cpu
        return convolve(inputs, jnp.asarray(kernel), self.dilation_rate[0])
