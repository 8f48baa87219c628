"""The networks, and the bridge from Keras models to pure functions."""

from collections.abc import Mapping
from typing import Any

import keras

from cervseg_jax.models.build import (
    build_abstract,
    build_model,
    build_with_layers,
    check_model_args,
    padded_size,
    size_divisor,
)
from cervseg_jax.models.encoders import InputNorm
from cervseg_jax.models.functional import Apply, functionalize
from cervseg_jax.models.initial import INITIALIZERS
from cervseg_jax.models.layers.attention import PatchEmbedding, PatchExpanding, PatchMerging, SwinTransformerBlock
from cervseg_jax.models.layers.backend import Backend, backend_for
from cervseg_jax.models.layers.conv.layer import SameConv2D
from cervseg_jax.models.layers.dropout import Uint16Dropout
from cervseg_jax.models.layers.pooling import BlockMaxPool
from cervseg_jax.models.layers.upsampling import UpsampleConv2x2
from cervseg_jax.models.table import MODELS, ModelEntry

__all__ = [
    "CUSTOM_OBJECTS",
    "MODELS",
    "Apply",
    "Backend",
    "ModelEntry",
    "backend_for",
    "build_abstract",
    "build_model",
    "build_with_layers",
    "check_model_args",
    "functionalize",
    "padded_size",
    "size_divisor",
]

# Networks are built for this layout; a keras.json left by another project may ask for the other one.
keras.config.set_image_data_format("channels_last")
keras.config.set_floatx("float32")

_LAYERS = (
    BlockMaxPool,
    Uint16Dropout,
    InputNorm,
    PatchEmbedding,
    PatchExpanding,
    PatchMerging,
    SameConv2D,
    SwinTransformerBlock,
    UpsampleConv2x2,
)
CUSTOM_OBJECTS: Mapping[str, Any] = {
    **{kind.__name__: kind for kind in (*_LAYERS, *INITIALIZERS)},
    "HalfWordDropout": Uint16Dropout,  # its name in files of versions before 0.2
}
"""Our own classes by name, for `keras.models.load_model(..., custom_objects=CUSTOM_OBJECTS)` of Keras files that
earlier versions exported; those of today need none of them."""
