"""A network in layers of Keras alone, for files that other programs load without this package."""

from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from cervseg_jax.models.encoders import InputNorm
from cervseg_jax.models.layers.attention import (
    PatchEmbedding,
    PatchExpanding,
    PatchMerging,
    SwinTransformerBlock,
    attend_in_windows,
    spread_patches,
    to_patches,
)
from cervseg_jax.models.layers.conv.depthwise import DepthwiseConv
from cervseg_jax.models.layers.conv.layer import SameConv2D
from cervseg_jax.models.layers.dropout import Uint16Dropout
from cervseg_jax.models.layers.pooling import BlockMaxPool
from cervseg_jax.models.layers.upsampling import UpsampleConv2x2

layers: Any = keras.layers
ops: Any = keras.ops


def standard_model(model: keras.Model, *, has_free_size: bool) -> keras.Model:
    """Returns a network for inference that consists of Keras' own layers and operations, with the same weights.

    Args:
      model: a functional model of this package, from images [b, h, w, c].
      has_free_size: whether height and width of the images are left open.

    Returns:
      A model with the same outputs.
    """
    pairs: list[tuple[Any, Any]] = []

    def convert(layer: Any) -> Any:
        if isinstance(layer, keras.Model):  # an encoder
            return clone(layer)
        if not isinstance(layer, layers.Layer):  # an operation
            return layer
        if type(layer) in _CONVERSIONS:
            return _CONVERSIONS[type(layer)](layer)
        base = _BASES.get(type(layer), type(layer))
        made = base.from_config(_with_standard_initializers(layer.get_config()))
        pairs.append((layer, made))
        return made

    def clone(network: Any) -> keras.Model:
        (image,) = network.inputs
        size = (None, None) if has_free_size else image.shape[1:3]
        inputs = keras.Input((*size, image.shape[-1]), name="image")
        return keras.models.clone_model(network, input_tensors=inputs, clone_function=convert)

    cloned = clone(model)
    for layer, made in pairs:
        made.set_weights(_weights(layer))
    return cloned


_BASES: Mapping[type, type] = {
    SameConv2D: layers.Conv2D,
    DepthwiseConv: layers.DepthwiseConv2D,
    Uint16Dropout: layers.Dropout,
    BlockMaxPool: layers.MaxPooling2D,
}
"""Layers of this package whose config and weights are those of a Keras layer."""


def _weights(layer: Any) -> list[np.ndarray]:
    return [np.asarray(variable.value) for variable in layer.weights]


def _with_standard_initializers(config: dict[str, Any]) -> dict[str, Any]:
    """Replaces initializers that draw with NumPy by Keras' own."""
    changed = {}
    for key, value in config.items():
        if isinstance(value, dict) and str(value.get("class_name", "")).startswith("Numpy"):
            name = value["class_name"].removeprefix("Numpy")
            value = {"module": "keras.initializers", "class_name": name, "config": value["config"]}
        changed[key] = value
    return config | changed


def _upsampling(layer: UpsampleConv2x2) -> Any:
    made = layers.Conv2DTranspose(layer.filters, 2, strides=2, name=layer.name, dtype=layer.dtype_policy)
    return _built(made, (None, None, None, layer.kernel.shape[-1]), _weights(layer))


def _input_norm(layer: InputNorm) -> Any:
    mean, variance, _ = _weights(layer)
    return layers.Normalization(mean=mean, variance=variance, name=layer.name, dtype=layer.dtype_policy)


def _merging(layer: PatchMerging) -> Any:
    return _dense(layer.name, layer.kernel)


def _embedding(layer: PatchEmbedding) -> Any:
    image = _input_like(layer)
    patches = to_patches(image, layer.patch_size)
    embeddings = np.asarray(layer.embeddings.value).reshape(*patches.shape[1:3], -1)
    return keras.Model(image, _dense("project", layer.kernel, layer.bias)(patches) + embeddings, name=layer.name)


def _expanding(layer: PatchExpanding) -> Any:
    image = _input_like(layer)
    projected = _dense("project", layer.kernel[0, 0])(image)
    return keras.Model(image, spread_patches(projected, layer.factor, layer.filters), name=layer.name)


def _swin_block(layer: SwinTransformerBlock) -> Any:
    tensors = layer.tensors

    def norm(name: str) -> Any:
        made = layers.LayerNormalization(epsilon=1e-5, name=name)
        shape = (None, tensors[f"{name}_gamma"].shape[0])
        return _built(made, shape, [np.asarray(tensors[f"{name}_{part}"]) for part in ("gamma", "beta")])

    def dense(name: str) -> Any:
        return _dense(name, tensors[f"{name}_kernel"], tensors[f"{name}_bias"])

    image = _input_like(layer)
    attended = attend_in_windows(
        norm("norm1")(image),
        dense("qkv"),
        dense("projection"),
        np.asarray(tensors["position_bias"].value),
        window=layer.window,
        shift=layer.shift,
        is_masked=layer.is_masked,
    )
    x = image + attended
    out = dense("mlp2")(ops.gelu(dense("mlp1")(norm("norm2")(x)), approximate=False))
    return keras.Model(image, x + out, name=layer.name)


def _input_like(layer: Any) -> Any:
    return keras.Input(layer.input.shape[1:])


def _dense(name: str, kernel: Any, bias: Any = None) -> Any:
    weights = [np.asarray(value) for value in (kernel, bias) if value is not None]
    made = layers.Dense(weights[0].shape[1], use_bias=bias is not None, name=name)
    return _built(made, (None, weights[0].shape[0]), weights)


def _built(layer: Any, shape: tuple[int | None, ...], weights: list[np.ndarray]) -> Any:
    layer.build(shape)
    layer.set_weights(weights)
    return layer


_CONVERSIONS: Mapping[type, Callable[[Any], Any]] = {
    UpsampleConv2x2: _upsampling,
    InputNorm: _input_norm,
    PatchEmbedding: _embedding,
    PatchExpanding: _expanding,
    PatchMerging: _merging,
    SwinTransformerBlock: _swin_block,
}
"""Layers of this package that become another layer, or a model of several."""
