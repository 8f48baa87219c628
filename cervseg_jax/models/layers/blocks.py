"""Pieces that several networks share."""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import keras
import numpy as np
from keras import ops

from cervseg_jax.models.layers.convolution import SameConv2D
from cervseg_jax.models.layers.pooling import BlockMaxPool

KERAS_DTYPES = {"float32": "float32", "bfloat16": "mixed_bfloat16"}
"""Keras dtype policies by the program's precision names; weights stay float32 in both."""

BATCH_NORM_MOMENTUM = 0.99
"""Of every layer, those of the encoders included."""

InputRange = Literal["unit", "raw"]
"""What a network makes of the 0..255 input first: "unit" divides by 255, "raw" takes it as it is."""


class Layers:
    """Makes the layers of one network: with explicit names, in one precision, remembered in order.

    Automatic Keras names count up per process, so that a second build of a network would have other variable paths.
    """

    def __init__(self, dtype: str) -> None:
        """Starts a network.

        Args:
          dtype: "float32" or "bfloat16".
        """
        self.policy = KERAS_DTYPES[dtype]
        self.float_policy = KERAS_DTYPES["float32"]
        self.created: list[keras.layers.Layer] = []
        """In the order of creation."""

    def keep(self, layer: Any) -> Any:
        """Remembers a layer that a builder made itself."""
        self.created.append(layer)
        return layer

    def scale_input(self, images: Any, input_range: InputRange) -> Any:
        """Applies the input range, in float32."""
        if input_range == "raw":
            return images
        return keras.layers.Rescaling(1 / 255, dtype=self.float_policy, name="scale_input")(images)

    def conv(
        self,
        x: Any,
        filters: int,
        kernel_size: int,
        name: str,
        *,
        stride: int = 1,
        dilation: int = 1,
        use_bias: bool = True,
        activation: str | None = None,
        initializer: str = "he_normal",
    ) -> Any:
        """Convolves with "same" padding."""
        layer = SameConv2D(
            filters,
            kernel_size,
            strides=stride,
            dilation_rate=dilation,
            padding="same",
            use_bias=use_bias,
            activation=activation,
            kernel_initializer=initializer,
            dtype=self.policy,
            name=name,
        )
        return self.keep(layer)(x)

    def norm(self, x: Any, name: str, *, epsilon: float = 1e-3) -> Any:
        """Normalizes by batch statistics."""
        layer = keras.layers.BatchNormalization(
            momentum=BATCH_NORM_MOMENTUM, epsilon=epsilon, dtype=self.policy, name=name
        )
        return self.keep(layer)(x)

    def layer_norm(self, x: Any, name: str, *, epsilon: float) -> Any:
        """Normalizes over channels."""
        return self.keep(keras.layers.LayerNormalization(epsilon=epsilon, dtype=self.policy, name=name))(x)

    def dense(self, x: Any, units: int, name: str, *, use_bias: bool = True, activation: Any = None) -> Any:
        """Maps channels linearly."""
        layer = keras.layers.Dense(units, use_bias=use_bias, activation=activation, dtype=self.policy, name=name)
        return self.keep(layer)(x)

    def relu(self, x: Any, name: str) -> Any:
        """Sets negative values to zero."""
        return keras.layers.ReLU(dtype=self.policy, name=name)(x)

    def dropout(self, x: Any, rate: float, name: str) -> Any:
        """Drops values in training; no layer at all for a rate of zero."""
        return Uint16Dropout(rate, seed=0, dtype=self.policy, name=name)(x) if rate > 0 else x

    def max_pool(self, x: Any, size: int, name: str) -> Any:
        """Takes the maximum of blocks of `size` pixels."""
        return BlockMaxPool(size, dtype=self.policy, name=name)(x)

    def upsample(self, x: Any, factor: int, name: str, *, method: str = "bilinear") -> Any:
        """Enlarges with half-pixel centers, edges repeated."""
        return keras.layers.UpSampling2D(factor, interpolation=method, dtype=self.policy, name=name)(x)

    def upsample_conv(self, x: Any, filters: int, name: str) -> Any:
        """Doubles the size by a learned kernel."""
        return self.keep(UpsampleConv2x2(filters, dtype=self.policy, name=name))(x)

    def concat(self, parts: Sequence[Any], name: str) -> Any:
        """Joins channels."""
        return keras.layers.Concatenate(dtype=self.policy, name=name)(list(parts))

    def add(self, parts: Sequence[Any], name: str) -> Any:
        """Adds tensors of one shape."""
        return keras.layers.Add(dtype=self.policy, name=name)(list(parts))

    def multiply(self, parts: Sequence[Any], name: str) -> Any:
        """Multiplies tensors; channels of size one are repeated."""
        return keras.layers.Multiply(dtype=self.policy, name=name)(list(parts))

    def head(self, x: Any, num_maps: int, name: str = "head", *, kernel_size: int = 1, use_bias: bool = True) -> Any:
        """Makes float32 logits."""
        layer = keras.layers.Conv2D(
            num_maps, kernel_size, padding="same", use_bias=use_bias, dtype=self.float_policy, name=name
        )
        return self.keep(layer)(x)

    def upsample_logits(self, logits: Any, factor: int, name: str) -> Any:
        """Enlarges logits in float32."""
        if factor == 1:
            return logits
        return keras.layers.UpSampling2D(factor, interpolation="bilinear", dtype=self.float_policy, name=name)(logits)


class Uint16Dropout(keras.layers.Dropout):
    """`keras.layers.Dropout` that draws 16 random bits for a value instead of 32.

    Drawing them is what dropout costs. The rate is rounded to a multiple of 2**-16.
    """

    def call(self, inputs: Any, training: bool = False) -> Any:
        """Drops values of [..., c] with the rate, and scales the others so that the mean stays."""
        num_dropped = round(self.rate * 2**16)
        if not training or not num_dropped:
            return inputs
        *sizes, channels = inputs.shape
        words = jax.random.bits(self.seed_generator.next(), (*sizes, -(-channels // 2)), "uint32")
        halves = jax.lax.bitcast_convert_type(words, "uint16").reshape(*sizes, -1)[..., :channels]
        scale = jnp.asarray(2**16 / (2**16 - num_dropped), inputs.dtype)
        return jnp.where(halves >= num_dropped, inputs * scale, jnp.zeros((), inputs.dtype))


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


def num_params(model: keras.Model) -> int:
    """Counts a model's weights, BatchNorm statistics included and dropout seeds not."""
    return sum(
        int(np.prod(variable.shape))
        for variable in model.variables
        if variable.path.rpartition("/")[2] != "seed_generator_state"
    )
