"""Layers of transformers on grids: patches, windows, and the blocks of Swin networks."""

from typing import Any

import keras
import numpy as np

ops: Any = keras.ops  # its annotations promise tensors of no type


class PatchEmbedding(keras.layers.Layer):
    """Maps patches linearly and adds a learned vector per place."""

    def __init__(self, width: int, patch_size: int = 1, **kwargs: Any) -> None:
        """Makes the layer.

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
        """Creates the map and the places for inputs [b, h, w, c]."""
        _, height, width, channels = input_shape
        places = (height // self.patch_size) * (width // self.patch_size)
        inputs = self.patch_size**2 * channels
        self.kernel = self.add_weight(name="kernel", shape=(inputs, self.width), initializer="glorot_uniform")
        self.bias = self.add_weight(name="bias", shape=(self.width,), initializer="zeros")
        self.places = self.add_weight(name="embeddings", shape=(places, self.width), initializer="random_uniform")

    def call(self, inputs: Any) -> Any:
        """Maps [b, h, w, c] to [b, h / patch_size, w / patch_size, width]."""
        patches = to_patches(inputs, self.patch_size)
        rows, columns = patches.shape[1:3]
        return ops.matmul(patches, self.kernel) + self.bias + ops.reshape(self.places, (rows, columns, self.width))

    def compute_output_shape(self, input_shape: tuple[int | None, int, int, int]) -> tuple[int | None, ...]:
        """Returns the shape of the grid of patches."""
        batch, height, width, _ = input_shape
        return (batch, height // self.patch_size, width // self.patch_size, self.width)


class PatchMerging(keras.layers.Layer):
    """Joins each 2x2 neighbors and maps them to twice the channels."""

    def build(self, input_shape: tuple[int, int, int, int]) -> None:
        """Creates the map for [b, h, w, 4c]."""
        channels = input_shape[-1]
        self.kernel = self.add_weight(name="kernel", shape=(channels, channels // 2), initializer="glorot_uniform")

    def call(self, inputs: Any) -> Any:
        """Maps [b, h, w, 4c] to [b, h, w, 2c]; see `neighbors`."""
        return ops.matmul(inputs, self.kernel)

    def compute_output_shape(self, input_shape: tuple[int | None, int, int, int]) -> tuple[int | None, ...]:
        """Returns the shape of the result."""
        return (*input_shape[:3], input_shape[-1] // 2)


class PatchExpanding(keras.layers.Layer):
    """Maps channels and spreads them over `factor` x `factor` places."""

    def __init__(self, filters: int, factor: int, **kwargs: Any) -> None:
        """Makes the layer.

        Args:
          filters: channels after spreading.
          factor: enlargement.
          **kwargs: `name` and `dtype` of the Keras layer.
        """
        super().__init__(**kwargs)
        self.filters = filters
        self.factor = factor

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments, for Keras' files."""
        return {**super().get_config(), "filters": self.filters, "factor": self.factor}

    def build(self, input_shape: tuple[int, int, int, int]) -> None:
        """Creates the map for [b, h, w, c]."""
        shape = (1, 1, input_shape[-1], self.factor**2 * self.filters)
        self.kernel = self.add_weight(name="kernel", shape=shape, initializer="glorot_uniform")

    def call(self, inputs: Any) -> Any:
        """Maps [b, h, w, c] to [b, factor h, factor w, filters]; row and column offsets vary before channels."""
        _, height, width, _ = inputs.shape
        factor = self.factor
        x = ops.reshape(ops.matmul(inputs, self.kernel[0, 0]), (-1, height, width, factor, factor, self.filters))
        return ops.reshape(ops.transpose(x, (0, 1, 3, 2, 4, 5)), (-1, factor * height, factor * width, self.filters))

    def compute_output_shape(self, input_shape: tuple[int | None, int, int, int]) -> tuple[int | None, ...]:
        """Returns the enlarged shape."""
        batch, height, width, _ = input_shape
        return (batch, self.factor * height, self.factor * width, self.filters)


class SwinTransformerBlock(keras.layers.Layer):
    """Attention within windows, shifted or not, and a two-layer perceptron, each after a normalization.

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
        """Makes the layer.

        Args:
          num_heads: attention heads; divides the channels.
          window: side of a window; grids that it does not divide are padded with zeros.
          shift: how far the windows are moved; 0 for none.
          hidden: width of the perceptron.
          is_masked: whether places that only a shift around the border brought together ignore each other.
          drop_path: chance that a whole branch is left out for an image in training.
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
        _, height, width, channels = x.shape
        window, heads = self.window, self.num_heads
        rows, columns = (-(-side // window) * window for side in (height, width))
        x = ops.pad(x, [(0, 0), (0, rows - height), (0, columns - width), (0, 0)])
        x = ops.roll(x, (-self.shift, -self.shift), axis=(1, 2)) if self.shift else x
        x = ops.reshape(x, (-1, rows // window, window, columns // window, window, channels))
        x = ops.reshape(ops.transpose(x, (0, 1, 3, 2, 4, 5)), (-1, window**2, channels))
        qkv = ops.matmul(x, self.tensors["qkv_kernel"]) + self.tensors["qkv_bias"]
        qkv = ops.transpose(ops.reshape(qkv, (-1, window**2, 3, heads, channels // heads)), (2, 0, 3, 1, 4))
        scores = ops.matmul(qkv[0] * (channels // heads) ** -0.5, ops.transpose(qkv[1], (0, 1, 3, 2)))
        bias = ops.take(self.tensors["position_bias"], _position_index(window), axis=0)
        scores = scores + ops.transpose(bias, (2, 0, 1))
        if self.shift and self.is_masked:
            mask = _shift_mask(rows, columns, window, self.shift)
            scores = ops.reshape(scores, (-1, mask.shape[0], heads, window**2, window**2)) + mask[:, None]
            scores = ops.reshape(scores, (-1, heads, window**2, window**2))
        x = ops.matmul(ops.softmax(scores, axis=-1), qkv[2])
        x = ops.reshape(ops.transpose(x, (0, 2, 1, 3)), (-1, window**2, channels))
        x = ops.matmul(x, self.tensors["projection_kernel"]) + self.tensors["projection_bias"]
        x = ops.reshape(x, (-1, rows // window, columns // window, window, window, channels))
        x = ops.reshape(ops.transpose(x, (0, 1, 3, 2, 4, 5)), (-1, rows, columns, channels))
        x = ops.roll(x, (self.shift, self.shift), axis=(1, 2)) if self.shift else x
        return x[:, :height, :width]


def to_patches(x: Any, size: int) -> Any:
    """Turns [b, h, w, c] into [b, h / size, w / size, size * size * c]; rows vary before columns and channels."""
    _, height, width, channels = x.shape
    x = ops.reshape(x, (-1, height // size, size, width // size, size, channels))
    return ops.reshape(ops.transpose(x, (0, 1, 3, 2, 4, 5)), (-1, height // size, width // size, size**2 * channels))


def neighbors(x: Any) -> Any:
    """Turns [b, h, w, c] into [b, h / 2, w / 2, 4c]: top left, bottom left, top right, bottom right."""
    parts = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
    return ops.concatenate(parts, axis=-1)


def _layer_norm(x: Any, gamma: Any, beta: Any) -> Any:
    full = ops.cast(x, "float32")
    centerd = full - ops.mean(full, axis=-1, keepdims=True)
    normed = centerd / ops.sqrt(ops.mean(ops.square(centerd), axis=-1, keepdims=True) + 1e-5)
    return ops.cast(normed, x.dtype) * gamma + beta


def _position_index(window: int) -> np.ndarray:
    """Row of the bias table for each pair of places, [window^2, window^2]."""
    places = np.stack(np.meshgrid(np.arange(window), np.arange(window), indexing="ij")).reshape(2, -1)
    offset = places[:, :, None] - places[:, None, :] + window - 1
    return offset[0] * (2 * window - 1) + offset[1]


def _shift_mask(rows: int, columns: int, window: int, shift: int) -> np.ndarray:
    """-100 for places of a window that do not lie side by side in the image, [windows, window^2, window^2]."""
    regions = np.zeros((rows, columns), np.int32)
    parts = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
    for number, (vertical, horizontal) in enumerate((v, h) for v in parts for h in parts):
        regions[vertical, horizontal] = number
    windows = regions.reshape(rows // window, window, columns // window, window).transpose(0, 2, 1, 3)
    flat = windows.reshape(-1, window**2)
    return np.where(flat[:, None, :] != flat[:, :, None], np.float32(-100), np.float32(0))
