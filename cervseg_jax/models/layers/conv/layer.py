"""The Keras layer that computes a convolution with the implementation for its backend."""

from typing import Any

import jax.numpy as jnp
import keras

from cervseg_jax.models.layers.backend import WithBackend
from cervseg_jax.models.layers.conv.cpu import convolve_on_cpu
from cervseg_jax.models.layers.conv.select import ConvShape, choose


class SameConv2D(WithBackend, keras.layers.Conv2D):
    """`keras.layers.Conv2D` with an implementation chosen by backend and shape."""

    def convolution_op(self, inputs: Any, kernel: Any) -> Any:
        """Convolves [b, h, w, c] with [k, k, c, f]."""
        is_plain = self.strides == (1, 1) and self.padding == "same" and self.groups == 1
        if is_plain and choose(self.backend, ConvShape.of(inputs.shape, kernel.shape)) == "cpu":
            return convolve_on_cpu(inputs, jnp.asarray(kernel), self.dilation_rate[0])
        return super().convolution_op(inputs, kernel)
