"""Transformer layers on image grids: patch embedding, merging and expanding, and Swin blocks."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

ops: Any = keras.ops  # its annotations promise tensors of no type


class PatchEmbedding(keras.layers.Layer):
    """Linear embedding of patches with a learned position embedding."""

    def __init__(self, width: int, patch_size: int = 1, **kwargs: Any) -> None:
        """Creates the layer.

        Args:
          width: channels of the result.
          patch_size: side of a patch in pixels.
          **kwargs: `name` and `dtype` of the Keras layer.
        """
        super().__init__(**kwargs)
        self.width = width
        self.patch_size = patch_size

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments, for Keras' files."""
        return {**super().get_config(), "width": self.width, "patch_size": self.patch_size}

    def build(self, input_shape: tuple[int, int, int, int]) -> None:
        """Creates the projection and the position embedding for inputs [b, h, w, c]."""
        _, height, width, channels = input_shape
        num_patches = (height // self.patch_size) * (width // self.patch_size)
        inputs = self.patch_size**2 * channels
        self.kernel = self.add_weight(name="kernel", shape=(inputs, self.width), initializer="glorot_uniform")
        self.bias = self.add_weight(name="bias", shape=(self.width,), initializer="zeros")
        self.embeddings = self.add_weight(
            name="embeddings", shape=(num_patches, self.width), initializer="random_uniform"
        )

    def call(self, inputs: Any) -> Any:
        """Maps [b, h, w, c] to [b, h / patch_size, w / patch_size, width]."""
        patches = to_patches(inputs, self.patch_size)
        rows, columns = patches.shape[1:3]
        return ops.matmul(patches, self.kernel) + self.bias + ops.reshape(self.embeddings, (rows, columns, self.width))

    def compute_output_shape(self, input_shape: tuple[int | None, int, int, int]) -> tuple[int | None, ...]:
        """Returns the shape of the grid of patches."""
        batch, height, width, _ = input_shape
        return (batch, height // self.patch_size, width // self.patch_size, self.width)


class PatchMerging(keras.layers.Layer):
    """Projection of 2x2 concatenated neighbors to twice the channels."""

    def build(self, input_shape: tuple[int, int, int, int]) -> None:
        """Creates the projection for [b, h, w, 4c]."""
        channels = input_shape[-1]
        self.kernel = self.add_weight(name="kernel", shape=(channels, channels // 2), initializer="glorot_uniform")

    def call(self, inputs: Any) -> Any:
        """Maps [b, h, w, 4c] to [b, h, w, 2c]; see `neighbors`."""
        return ops.matmul(inputs, self.kernel)

    def compute_output_shape(self, input_shape: tuple[int | None, int, int, int]) -> tuple[int | None, ...]:
        """Returns the shape of the result."""
        return (*input_shape[:3], input_shape[-1] // 2)


class PatchExpanding(keras.layers.Layer):
    """Projection of channels, rearranged to `factor` x `factor` pixels."""

    def __init__(self, filters: int, factor: int, **kwargs: Any) -> None:
        """Creates the layer.

        Args:
          filters: output channels.
          factor: enlargement of height and width.
          **kwargs: `name` and `dtype` of the Keras layer.
        """
        super().__init__(**kwargs)
        self.filters = filters
        self.factor = factor

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments, for Keras' files."""
        return {**super().get_config(), "filters": self.filters, "factor": self.factor}

    def build(self, input_shape: tuple[int, int, int, int]) -> None:
        """Creates the projection for [b, h, w, c]."""
        shape = (1, 1, input_shape[-1], self.factor**2 * self.filters)
        self.kernel = self.add_weight(name="kernel", shape=shape, initializer="glorot_uniform")

    def call(self, inputs: Any) -> Any:
        """Maps [b, h, w, c] to [b, factor h, factor w, filters]; row and column offsets vary before channels."""
        return spread_patches(ops.matmul(inputs, self.kernel[0, 0]), self.factor, self.filters)

    def compute_output_shape(self, input_shape: tuple[int | None, int, int, int]) -> tuple[int | None, ...]:
        """Returns the enlarged shape."""
        batch, height, width, _ = input_shape
        return (batch, self.factor * height, self.factor * width, self.filters)


class SwinTransformerBlock(keras.layers.Layer):
    """Pre-norm transformer block with attention within windows, which may be shifted.

    Reference: Liu et al. 2021, arXiv:2103.14030, sections 3.1 and 3.2.
    """

    def __init__(
        self,
        num_heads: int,
        window: int,
        shift: int,
        hidden: int,
        *,
        is_masked: bool = True,
        drop_path: float = 0.0,
        **kwargs: Any,
    ) -> None:
        """Creates the layer.

        Args:
          num_heads: attention heads; divides the channels.
          window: side of a window; grids are zero-padded to multiples of it.
          shift: offset of the windows in pixels; 0 for none.
          hidden: hidden width of the MLP.
          is_masked: whether positions that are adjacent only because the shift wraps around are masked.
          drop_path: probability of dropping a residual branch for an image in training.
          **kwargs: `name` and `dtype` of the Keras layer.
        """
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.window = window
        self.shift = shift
        self.hidden = hidden
        self.is_masked = is_masked
        self.drop_path = drop_path
        self.drop = keras.layers.Dropout(drop_path, noise_shape=(None, 1, 1, 1), seed=0) if drop_path else None

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments, for Keras' files."""
        names = ("num_heads", "window", "shift", "hidden", "is_masked", "drop_path")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}

    def build(self, input_shape: tuple[int, int, int, int]) -> None:
        """Creates the weights for [b, h, w, c]."""
        channels, hidden = input_shape[-1], self.hidden
        biases = (2 * self.window - 1) ** 2
        shapes = {
            "norm1_gamma": (channels,),
            "norm1_beta": (channels,),
            "position_bias": (biases, self.num_heads),
            "qkv_kernel": (channels, 3 * channels),
            "qkv_bias": (3 * channels,),
            "projection_kernel": (channels, channels),
            "projection_bias": (channels,),
            "norm2_gamma": (channels,),
            "norm2_beta": (channels,),
            "mlp1_kernel": (channels, hidden),
            "mlp1_bias": (hidden,),
            "mlp2_kernel": (hidden, channels),
            "mlp2_bias": (channels,),
        }
        initializers = {"kernel": "glorot_uniform", "gamma": "ones"}
        self.tensors = {
            name: self.add_weight(name=name, shape=shape, initializer=initializers.get(name.split("_")[1], "zeros"))
            for name, shape in shapes.items()
        }

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Maps [b, h, w, c] to the same shape."""
        w = self.tensors
        attended = self._attention(_layer_norm(inputs, w["norm1_gamma"], w["norm1_beta"]))
        x = inputs + self._dropped(attended, training)
        hidden = ops.matmul(_layer_norm(x, w["norm2_gamma"], w["norm2_beta"]), w["mlp1_kernel"]) + w["mlp1_bias"]
        out = ops.matmul(ops.gelu(hidden, approximate=False), w["mlp2_kernel"]) + w["mlp2_bias"]
        return x + self._dropped(out, training)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Returns the same shape."""
        return input_shape

    def _dropped(self, x: Any, training: bool | None) -> Any:
        return x if self.drop is None else self.drop(x, training=training)

    def _attention(self, x: Any) -> Any:
        w = self.tensors
        return attend_in_windows(
            x,
            lambda values: ops.matmul(values, w["qkv_kernel"]) + w["qkv_bias"],
            lambda values: ops.matmul(values, w["projection_kernel"]) + w["projection_bias"],
            w["position_bias"],
            window=self.window,
            shift=self.shift,
            is_masked=self.is_masked,
        )


def attend_in_windows(
    x: Any,
    query_key_value: Callable[[Any], Any],
    project: Callable[[Any], Any],
    position_bias: Any,
    *,
    window: int,
    shift: int,
    is_masked: bool,
) -> Any:
    """Applies attention of several heads within windows.

    Args:
      x: [b, h, w, c].
      query_key_value: from [n, window^2, c] to [n, window^2, 3 c].
      project: from [n, window^2, c] to the same shape.
      position_bias: [(2 window - 1)^2, heads].
      window: side of a window; grids are zero-padded to multiples of it.
      shift: offset of the windows in pixels; 0 for none.
      is_masked: whether positions that are adjacent only because the shift wraps around are masked.

    Returns:
      [b, h, w, c].
    """
    _, height, width, channels = x.shape
    heads = position_bias.shape[1]
    rows, columns = (-(-side // window) * window for side in (height, width))
    x = ops.pad(x, [(0, 0), (0, rows - height), (0, columns - width), (0, 0)])
    x = ops.roll(x, (-shift, -shift), axis=(1, 2)) if shift else x
    x = ops.reshape(x, (-1, rows // window, window, columns // window, window, channels))
    x = ops.reshape(ops.transpose(x, (0, 1, 3, 2, 4, 5)), (-1, window**2, channels))
    qkv = ops.reshape(query_key_value(x), (-1, window**2, 3, heads, channels // heads))
    qkv = ops.transpose(qkv, (2, 0, 3, 1, 4))
    scores = ops.matmul(qkv[0] * (channels // heads) ** -0.5, ops.transpose(qkv[1], (0, 1, 3, 2)))
    bias = ops.take(position_bias, _position_index(window), axis=0)
    scores = scores + ops.transpose(bias, (2, 0, 1))
    if shift and is_masked:
        mask = _shift_mask(rows, columns, window, shift)
        scores = ops.reshape(scores, (-1, mask.shape[0], heads, window**2, window**2)) + mask[:, None]
        scores = ops.reshape(scores, (-1, heads, window**2, window**2))
    x = ops.matmul(ops.softmax(scores, axis=-1), qkv[2])
    x = project(ops.reshape(ops.transpose(x, (0, 2, 1, 3)), (-1, window**2, channels)))
    x = ops.reshape(x, (-1, rows // window, columns // window, window, window, channels))
    x = ops.reshape(ops.transpose(x, (0, 1, 3, 2, 4, 5)), (-1, rows, columns, channels))
    x = ops.roll(x, (shift, shift), axis=(1, 2)) if shift else x
    return x[:, :height, :width]


def spread_patches(x: Any, factor: int, filters: int) -> Any:
    """Turns [b, h, w, factor^2 * filters] into [b, factor h, factor w, filters]; offsets vary before channels."""
    _, height, width, _ = x.shape
    x = ops.reshape(x, (-1, height, width, factor, factor, filters))
    return ops.reshape(ops.transpose(x, (0, 1, 3, 2, 4, 5)), (-1, factor * height, factor * width, filters))


def to_patches(x: Any, size: int) -> Any:
    """Turns [b, h, w, c] into [b, h / size, w / size, size * size * c]; rows vary before columns and channels."""
    _, height, width, channels = x.shape
    x = ops.reshape(x, (-1, height // size, size, width // size, size, channels))
    return ops.reshape(ops.transpose(x, (0, 1, 3, 2, 4, 5)), (-1, height // size, width // size, size**2 * channels))


def neighbors(x: Any) -> Any:
    """Turns [b, h, w, c] into [b, h / 2, w / 2, 4c]: top left, bottom left, top right, bottom right."""
    return ops.concatenate([x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)], axis=-1)


def _layer_norm(x: Any, gamma: Any, beta: Any) -> Any:
    full = ops.cast(x, "float32")
    centered = full - ops.mean(full, axis=-1, keepdims=True)
    normed = centered / ops.sqrt(ops.mean(ops.square(centered), axis=-1, keepdims=True) + 1e-5)
    return ops.cast(normed, x.dtype) * gamma + beta


def _position_index(window: int) -> np.ndarray:
    """Returns the row of the bias table for each pair of positions, [window^2, window^2]."""
    positions = np.stack(np.meshgrid(np.arange(window), np.arange(window), indexing="ij")).reshape(2, -1)
    offset = positions[:, :, None] - positions[:, None, :] + window - 1
    return offset[0] * (2 * window - 1) + offset[1]


def _shift_mask(rows: int, columns: int, window: int, shift: int) -> np.ndarray:
    """Returns -100 for pairs of positions that the shift wraps around, else 0, [windows, window^2, window^2]."""
    regions = np.zeros((rows, columns), np.int32)
    spans = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
    for index, (vertical, horizontal) in enumerate((v, h) for v in spans for h in spans):
        regions[vertical, horizontal] = index
    windows = regions.reshape(rows // window, window, columns // window, window).transpose(0, 2, 1, 3)
    flat = windows.reshape(-1, window**2)
    return np.where(flat[:, None, :] != flat[:, :, None], np.float32(-100), np.float32(0))
