"""The layer factory that all networks share."""

from collections.abc import Sequence
from typing import Any, Literal

import keras
import numpy as np

from cervseg_jax.models.layers.backend import Backend
from cervseg_jax.models.layers.conv.depthwise import DepthwiseConv
from cervseg_jax.models.layers.conv.layer import SameConv2D
from cervseg_jax.models.layers.dropout import Uint16Dropout
from cervseg_jax.models.layers.pooling import BlockMaxPool
from cervseg_jax.models.layers.upsampling import UpsampleConv2x2

KERAS_DTYPES = {"float32": "float32", "bfloat16": "mixed_bfloat16"}
"""Keras dtype policy by `runtime.precision`; weights stay float32 in both."""

BATCH_NORM_MOMENTUM = 0.99
"""Momentum of every BatchNorm layer, including those of the encoders."""

InputRange = Literal["unit", "raw"]
"""Input scaling inside the network: "unit" divides the 0..255 input by 255, "raw" leaves it unchanged."""


class Layers:
    """Creates the layers of one network, with explicit names, one precision and one backend.

    Keras' automatic names count up per process, so a second build of a network would have different variable paths.
    """

    def __init__(self, dtype: str, *, backend: Backend = "xla") -> None:
        """Creates a factory for one network.

        Args:
          dtype: "float32" or "bfloat16".
          backend: target of the program. It changes how layers compute, never their names, weights or configs.
        """
        self.policy = KERAS_DTYPES[dtype]
        self.float_policy = KERAS_DTYPES["float32"]
        self.backend: Backend = backend
        self.created: list[keras.layers.Layer] = []
        """Layers with weights, in order of creation."""

    def record(self, layer: Any) -> Any:
        """Records a layer that a builder created itself, and returns it."""
        self.created.append(layer)
        return layer

    def apply(self, layer: Any, x: Any) -> Any:
        """Records a layer that a builder created itself, and applies it."""
        return self.record(layer)(x)

    def plain(self, x: Any) -> Any:
        """Returns a tensor [b, h, w, c] for operations that are not layers of this factory."""
        return x

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
        """Applies a convolution with "same" padding."""
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
            backend=self.backend,
        )
        return self.record(layer)(x)

    def depthwise(self, settings: dict[str, Any]) -> Any:
        """Returns a depthwise convolution with the given config of `keras.layers.DepthwiseConv2D`, not recorded."""
        layer: Any = DepthwiseConv.from_config(settings)
        layer.backend = self.backend
        return layer

    def norm(self, x: Any, name: str, *, epsilon: float = 1e-3) -> Any:
        """Applies BatchNorm."""
        layer = keras.layers.BatchNormalization(
            momentum=BATCH_NORM_MOMENTUM, epsilon=epsilon, dtype=self.policy, name=name
        )
        return self.record(layer)(x)

    def layer_norm(self, x: Any, name: str, *, epsilon: float) -> Any:
        """Applies layer normalization over channels."""
        return self.record(keras.layers.LayerNormalization(epsilon=epsilon, dtype=self.policy, name=name))(x)

    def dense(self, x: Any, units: int, name: str, *, use_bias: bool = True, activation: Any = None) -> Any:
        """Applies a linear map to the channels."""
        layer = keras.layers.Dense(units, use_bias=use_bias, activation=activation, dtype=self.policy, name=name)
        return self.record(layer)(x)

    def relu(self, x: Any, name: str) -> Any:
        """Applies a ReLU."""
        return keras.layers.ReLU(dtype=self.policy, name=name)(x)

    def dropout(self, x: Any, rate: float, name: str) -> Any:
        """Applies dropout in training; creates no layer for a rate of zero."""
        return Uint16Dropout(rate, seed=0, dtype=self.policy, name=name)(x) if rate > 0 else x

    def max_pool(self, x: Any, size: int, name: str) -> Any:
        """Applies max pooling over blocks of `size` x `size` pixels."""
        return BlockMaxPool(size, dtype=self.policy, name=name, backend=self.backend)(x)

    def upsample(self, x: Any, factor: int, name: str, *, method: str = "bilinear") -> Any:
        """Enlarges by interpolation with half-pixel centers and repeated edges."""
        return keras.layers.UpSampling2D(factor, interpolation=method, dtype=self.policy, name=name)(x)

    def upsample_conv(self, x: Any, filters: int, name: str) -> Any:
        """Doubles the size with a learned kernel."""
        return self.record(UpsampleConv2x2(filters, dtype=self.policy, name=name))(x)

    def concat(self, tensors: Sequence[Any], name: str) -> Any:
        """Concatenates channels."""
        return keras.layers.Concatenate(dtype=self.policy, name=name)(list(tensors))

    def add(self, tensors: Sequence[Any], name: str) -> Any:
        """Adds tensors of equal shape."""
        return keras.layers.Add(dtype=self.policy, name=name)(list(tensors))

    def multiply(self, tensors: Sequence[Any], name: str) -> Any:
        """Multiplies tensors; a single channel is broadcast."""
        return keras.layers.Multiply(dtype=self.policy, name=name)(list(tensors))

    def head(self, x: Any, num_maps: int, name: str = "head", *, kernel_size: int = 1, use_bias: bool = True) -> Any:
        """Applies the last convolution; the logits are float32."""
        layer = keras.layers.Conv2D(
            num_maps, kernel_size, padding="same", use_bias=use_bias, dtype=self.float_policy, name=name
        )
        return self.record(layer)(x)

    def upsample_logits(self, logits: Any, factor: int, name: str) -> Any:
        """Enlarges logits bilinearly, in float32."""
        if factor == 1:
            return logits
        return keras.layers.UpSampling2D(factor, interpolation="bilinear", dtype=self.float_policy, name=name)(logits)

    def concat_logits(self, logits: Sequence[Any], name: str) -> Any:
        """Concatenates the channels of logits, in float32."""
        return keras.layers.Concatenate(dtype=self.float_policy, name=name)(list(logits))


def num_params(model: keras.Model) -> int:
    """Counts the weights of a model, including BatchNorm statistics but not dropout seeds."""
    return sum(
        int(np.prod(variable.shape))
        for variable in model.variables
        if variable.path.rpartition("/")[2] != "seed_generator_state"
    )
