"""Learned upsampling."""

from typing import Any

import keras
from keras import ops


class UpsampleConv2x2(keras.layers.Layer):
    """Transposed convolution with kernel 2 and stride 2, written as one matrix product per pixel.

    The windows do not overlap, so this equals `Conv2DTranspose(filters, 2, strides=2)` with the same kernel
    layout (2, 2, filters, channels). In contrast to it, the kernel's gradient does not gather whole images when rows
    are sharded over devices.
    """

    def __init__(self, filters: int, **kwargs: Any) -> None:
        """Creates the layer.

        Args:
          filters: output channels.
          **kwargs: `name` and `dtype` of the Keras layer.
        """
        super().__init__(**kwargs)
        self.filters = filters

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments, for Keras' files."""
        return {**super().get_config(), "filters": self.filters}

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates kernel and bias for inputs of `input_shape` [b, h, w, c]."""
        channels = input_shape[-1]
        self.kernel = self.add_weight(name="kernel", shape=(2, 2, self.filters, channels), initializer="glorot_uniform")
        self.bias = self.add_weight(name="bias", shape=(self.filters,), initializer="zeros")

    def call(self, inputs: Any) -> Any:
        """Maps [b, h, w, c] to [b, 2h, 2w, filters]."""
        _, height, width, _ = inputs.shape
        doubled = ops.einsum("bhwc,klfc->bhkwlf", inputs, self.kernel)
        return ops.reshape(doubled, (-1, 2 * height, 2 * width, self.filters)) + self.bias

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Returns the doubled shape."""
        batch, height, width, _ = input_shape
        return (batch, height and 2 * height, width and 2 * width, self.filters)
