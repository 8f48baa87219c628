"""Pieces that several networks share."""

from typing import Any

import keras
import numpy as np
from keras import ops

KERAS_DTYPES = {"float32": "float32", "bfloat16": "mixed_bfloat16"}
"""Keras dtype policies by the program's precision names; weights stay float32 in both."""


class UpsampleConv2x2(keras.layers.Layer):
    """Transposed convolution with kernel 2 and stride 2, written as one product per pixel.

    The windows do not overlap, so this equals `Conv2DTranspose(filters, 2, strides=2)` with the same kernel
    layout (2, 2, filters, channels). Unlike there, the kernel's gradient needs no gathering of the whole image
    when rows are sharded over devices.
    """

    def __init__(self, filters: int, **kwargs: Any) -> None:
        """Makes the layer.

        Args:
          filters: output channels.
          **kwargs: `name` and `dtype` of the Keras layer.
        """
        super().__init__(**kwargs)
        self.filters = filters

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


def num_params(model: keras.Model) -> int:
    """Counts a model's weights, BatchNorm statistics included and dropout seeds not."""
    return sum(
        int(np.prod(variable.shape))
        for variable in model.variables
        if variable.path.rpartition("/")[2] != "seed_generator_state"
    )
