"""Keras layers on packed tensors, with the names, weights and results of their plain counterparts.

See `packing` for the layout. Masks of dropout differ from those of plain layers, as the shapes of their random bits do.
"""

from typing import Any

import jax.numpy as jnp
import keras
from keras import ops

from cervseg_jax.models.layers.conv.packed import convolve_packed
from cervseg_jax.models.layers.packing import Layout, halved, max_pool_packed, mean_over_block, tile
from cervseg_jax.models.layers.upsampling import UpsampleConv2x2


class PackedConv2D(keras.layers.Conv2D):
    """`keras.layers.Conv2D` with "same" padding and stride 1."""

    def __init__(self, filters: int, kernel_size: int, *, layout: Layout, **kwargs: Any) -> None:
        """Creates the layer.

        Args:
          filters: output channels.
          kernel_size: odd.
          layout: of the input.
          **kwargs: as for `keras.layers.Conv2D`.
        """
        super().__init__(filters, kernel_size, padding="same", **kwargs)
        self.layout = layout

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates the weights of the unpacked layer."""
        super().build((*input_shape[:3], self.layout.channels))
        self.input_spec = keras.InputSpec(ndim=4)

    def call(self, inputs: Any) -> Any:
        """Maps [b, h, n, block * c] to [b, h, n, block * filters]."""
        kernel = jnp.asarray(self.kernel, inputs.dtype)
        outputs = convolve_packed(inputs, kernel, self.layout, self.dilation_rate[0])
        if self.use_bias:
            bias = jnp.asarray(self.bias, outputs.dtype)
            outputs = outputs + tile(bias, self.layout._replace(groups=(self.filters,)))
        return outputs if self.activation is None else self.activation(outputs)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Returns the packed shape of the result."""
        return (*input_shape[:3], self.layout.block * self.filters)


class PackedBatchNormalization(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization` over the pixels of blocks as well."""

    def __init__(self, *, layout: Layout, **kwargs: Any) -> None:
        """Creates the layer.

        Args:
          layout: of the input.
          **kwargs: as for `keras.layers.BatchNormalization`.
        """
        super().__init__(**kwargs)
        self.layout = layout

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates the weights of the unpacked layer."""
        super().build((*input_shape[:3], self.layout.channels))
        self.input_spec = keras.InputSpec(ndim=4)

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Normalizes [b, h, n, block * c]; statistics are those of the c channels."""
        values = inputs.astype(jnp.promote_types(inputs.dtype, jnp.float32))
        moving = [jnp.asarray(self.moving_mean, values.dtype), jnp.asarray(self.moving_variance, values.dtype)]
        if training and self.trainable:
            mean = mean_over_block(values.mean((0, 1, 2)), self.layout)
            centered = values - tile(mean, self.layout)
            variance = mean_over_block(jnp.square(centered).mean((0, 1, 2)), self.layout)
            share = 1.0 - self.momentum
            statistics: Any = (self.moving_mean, self.moving_variance)
            statistics[0].assign(moving[0] * self.momentum + mean * share)
            statistics[1].assign(moving[1] * self.momentum + variance * share)
        else:
            mean, variance = moving
        scale = jnp.asarray(self.gamma, values.dtype) / jnp.sqrt(variance + self.epsilon)
        offset = jnp.asarray(self.beta, values.dtype) - mean * scale
        return (values * tile(scale, self.layout) + tile(offset, self.layout)).astype(self.compute_dtype)


class PackedMaxPool(keras.layers.Layer):
    """Max pooling of 2x2 pixels."""

    def __init__(self, *, layout: Layout, **kwargs: Any) -> None:
        """Creates the layer.

        Args:
          layout: of the input.
          **kwargs: `name` and `dtype` of the Keras layer.
        """
        super().__init__(**kwargs)
        self.layout = layout

    def call(self, inputs: Any) -> Any:
        """Maps [b, h, n, block * c] to [b, h / 2, n, block / 2 * c]."""
        return max_pool_packed(inputs, self.layout)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Returns the packed shape of the result."""
        batch, height, columns, _ = input_shape
        layout = halved(self.layout)
        return (batch, height and height // 2, columns, layout.block * layout.channels)


class PackedUpsampleConv2x2(UpsampleConv2x2):
    """`UpsampleConv2x2` whose result has twice as many pixels per block as its input."""

    def __init__(self, filters: int, *, layout: Layout, **kwargs: Any) -> None:
        """Creates the layer.

        Args:
          filters: output channels.
          layout: of the input, of one group.
          **kwargs: `name` and `dtype` of the Keras layer.
        """
        super().__init__(filters, **kwargs)
        self.layout = layout

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates the weights of the unpacked layer."""
        super().build((*input_shape[:3], self.layout.channels))

    def call(self, inputs: Any) -> Any:
        """Maps [b, h, n, block * c] to [b, 2h, n, 2 * block * filters]."""
        _, height, columns, lanes = inputs.shape
        block, filters = self.layout.block, self.filters
        kernel = jnp.asarray(self.kernel, inputs.dtype)
        # From pixel p of a block to pixel 2 p + l: a block-diagonal matrix, [p, c, row, p, l, filters].
        diagonal = jnp.eye(block, dtype=kernel.dtype)[:, None, None, :, None, None]
        taps = kernel.transpose(3, 0, 1, 2)[None, :, :, None, :, :]
        matrix = (diagonal * taps).reshape(lanes, 2, 2 * block * filters)
        rows = ops.einsum("bhni,ikj->bhknj", inputs, matrix)
        bias = jnp.tile(jnp.asarray(self.bias, inputs.dtype), 2 * block)
        doubled: Any = ops.reshape(rows, (-1, 2 * height, columns, 2 * block * filters))
        return doubled + bias

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Returns the packed shape of the result."""
        batch, height, columns, _ = input_shape
        return (batch, height and 2 * height, columns, 2 * self.layout.block * self.filters)
