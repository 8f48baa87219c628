"""All networks under one contract, and the bridge from Keras to pure functions.

A builder takes a maker of layers, images in 0..255 [b, h, w, c], the number of output maps and its own keyword
arguments, and returns a list of logits at the images' size, [b, h, w, maps] each: the prediction, then side outputs
for deep supervision. A new model is one file and one line in `MODELS`.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import keras

from cervseg_jax.components import bind, lookup
from cervseg_jax.errors import ConfigError
from cervseg_jax.models.encoders import InputNorm
from cervseg_jax.models.families import (
    attention_unet,
    basnet,
    deeplab_v3plus,
    efficient_unet,
    efficientnet_lite0_unet,
    multires_unet,
    sharp_unet,
    swin_unet,
    trans_unet,
    u2net,
    unet,
    unet3plus,
    xception_like_unet,
)
from cervseg_jax.models.functional import Apply, functionalize
from cervseg_jax.models.initial import INITIALIZERS, NUMPY_INITIALIZERS
from cervseg_jax.models.layers.attention import PatchEmbedding, PatchExpanding, PatchMerging, SwinTransformerBlock
from cervseg_jax.models.layers.blocks import Layers, Uint16Dropout, UpsampleConv2x2
from cervseg_jax.models.layers.convolution import SameConv2D
from cervseg_jax.models.layers.pooling import BlockMaxPool

__all__ = [
    "CUSTOM_OBJECTS",
    "MODELS",
    "Apply",
    "ModelEntry",
    "build_model",
    "check_model_args",
    "functionalize",
    "padded_size",
    "size_divisor",
]


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
CUSTOM_OBJECTS: Mapping[str, Any] = {kind.__name__: kind for kind in (*_LAYERS, *INITIALIZERS)}
"""For `keras.models.load_model(..., custom_objects=...)`: what our networks have besides Keras' own layers."""


class ModelEntry(NamedTuple):
    """One line of the model table."""

    build: Callable[..., list[Any]]
    size_divisor: Callable[[Mapping[str, Any]], int]
    """From the bound arguments to the number that must divide height and width."""
    paper: str
    has_fixed_size: bool = False
    """Whether weights or layers depend on the image's size."""


MODELS: Mapping[str, ModelEntry] = {
    "attention_unet": ModelEntry(
        attention_unet.attention_unet, attention_unet.size_divisor, "Oktay et al. 2018, arXiv:1804.03999"
    ),
    "basnet": ModelEntry(basnet.basnet, basnet.size_divisor, "Qin et al. 2021, arXiv:2101.04704"),
    "deeplab_v3plus": ModelEntry(
        deeplab_v3plus.deeplab_v3plus,
        deeplab_v3plus.size_divisor,
        "Chen et al. 2018, arXiv:1802.02611",
        has_fixed_size=True,
    ),
    "efficient_unet": ModelEntry(
        efficient_unet.efficient_unet, efficient_unet.size_divisor, "encoder: Tan and Le 2019, arXiv:1905.11946"
    ),
    "efficientnet_b7_unet": ModelEntry(
        efficient_unet.efficientnet_b7_unet, efficient_unet.size_divisor, "encoder: Tan and Le 2019, arXiv:1905.11946"
    ),
    "efficientnet_lite0_unet": ModelEntry(
        efficientnet_lite0_unet.efficientnet_lite0_unet,
        efficientnet_lite0_unet.size_divisor,
        "encoder: Tan and Le 2019, arXiv:1905.11946",
    ),
    "multires_unet": ModelEntry(
        multires_unet.multires_unet, multires_unet.size_divisor, "Ibtehaz and Rahman 2019, arXiv:1902.04049"
    ),
    "sharp_unet": ModelEntry(
        sharp_unet.sharp_unet, sharp_unet.size_divisor, "Zunair and Ben Hamza 2021, arXiv:2107.12461"
    ),
    "swin_unet": ModelEntry(
        swin_unet.swin_unet, swin_unet.size_divisor, "Cao et al. 2021, arXiv:2105.05537", has_fixed_size=True
    ),
    "trans_unet": ModelEntry(
        trans_unet.trans_unet, trans_unet.size_divisor, "Chen et al. 2021, arXiv:2102.04306", has_fixed_size=True
    ),
    "u2net": ModelEntry(u2net.u2net, u2net.size_divisor, "Qin et al. 2020, arXiv:2005.09007"),
    "unet": ModelEntry(unet.unet, unet.size_divisor, "Ronneberger et al. 2015, arXiv:1505.04597"),
    "unet3plus": ModelEntry(unet3plus.unet3plus, unet3plus.size_divisor, "Huang et al. 2020, arXiv:2004.08790"),
    "xception_like_unet": ModelEntry(
        xception_like_unet.xception_like_unet, xception_like_unet.size_divisor, "a Keras example; no paper"
    ),
}
"""Networks by config name."""

_SUPPLIED = ("net", "images", "num_maps")


def check_model_args(name: str, image_size: tuple[int, int], args: Mapping[str, Any]) -> dict[str, Any]:
    """Checks a model's arguments, and the image size against them.

    Args:
      name: a key of `MODELS`.
      image_size: height and width in pixels.
      args: what the user wrote under `model.args`.

    Returns:
      All arguments of the builder, defaults included.

    Raises:
      ConfigError: for an unknown model, a wrong argument or a size that is too small for the network.
    """
    bound, padded = _bound_and_padded(name, image_size, args)
    if any(after - before >= before for before, after in zip(image_size, padded, strict=True)):
        raise ConfigError(
            f"model.image_size: {name} with these model.args needs multiples of {_divisor(name, bound)}; "
            f"{list(image_size)} is too small to be padded to {list(padded)}; take fewer levels or larger images"
        )
    return bound


def padded_size(name: str, image_size: tuple[int, int], args: Mapping[str, Any]) -> tuple[int, int]:
    """Returns the height and width at which a network computes: the next multiples of its divisor.

    Example:
      >>> padded_size("unet", (100, 64), {"levels": 4})
      (104, 64)
    """
    return _bound_and_padded(name, image_size, args)[1]


def size_divisor(name: str, args: Mapping[str, Any]) -> int:
    """Returns the number whose multiples a network takes without padding.

    Example:
      >>> size_divisor("unet", {"levels": 4})
      8
    """
    return _divisor(name, bind(MODELS[name].build, args, key="model.args", reserved=_SUPPLIED))


def _bound_and_padded(
    name: str, image_size: tuple[int, int], args: Mapping[str, Any]
) -> tuple[dict[str, Any], tuple[int, int]]:
    entry = lookup(MODELS, name, key="model.name")
    bound = bind(entry.build, args, key="model.args", reserved=_SUPPLIED)
    divisor = _divisor(name, bound)
    height, width = (-(-size // divisor) * divisor for size in image_size)
    return bound, (height, width)


def _divisor(name: str, bound: Mapping[str, Any]) -> int:
    try:
        return MODELS[name].size_divisor(bound)
    except ValueError as error:
        raise ConfigError(f"model.args: {error}") from None


def build_model(
    name: str,
    *,
    image_size: tuple[int, int],
    args: Mapping[str, Any],
    dtype: str = "float32",
    num_channels: int = 3,
    num_maps: int = 1,
) -> keras.Model:
    """Builds a network by name.

    Sizes that the network cannot halve often enough are padded by reflection inside and cropped back.

    Args:
      name: a key of `MODELS`.
      image_size: height and width in pixels.
      args: keyword arguments of the builder.
      dtype: "float32", or "bfloat16" for computing in bfloat16 with float32 weights and logits.
      num_channels: channels of the images.
      num_maps: channels of the output.

    Returns:
      A Keras model from images in 0..255 to a list of logits: the prediction, then side outputs.

    Raises:
      ConfigError: as `check_model_args`.
    """
    bound = check_model_args(name, image_size, args)
    return build_with_layers(name, Layers(dtype), image_size, bound, num_channels=num_channels, num_maps=num_maps)


def build_with_layers(
    name: str,
    net: Layers,
    image_size: tuple[int, int],
    bound: Mapping[str, Any],
    *,
    num_channels: int = 3,
    num_maps: int = 1,
) -> keras.Model:
    """Builds as `build_model` from checked arguments; `net` shows the layers in order of creation afterwards."""
    inputs = keras.Input((*image_size, num_channels), name="image")
    padded = padded_size(name, image_size, bound)
    before = [(after - size) // 2 for size, after in zip(image_size, padded, strict=True)]
    widths = [(0, 0)] + [(b, after - size - b) for b, size, after in zip(before, image_size, padded, strict=True)]
    is_padded = padded != tuple(image_size)
    images = keras.ops.pad(inputs, [*widths, (0, 0)], mode="reflect") if is_padded else inputs
    with keras.utils.custom_object_scope(NUMPY_INITIALIZERS):
        outputs = MODELS[name].build(net, images, num_maps=num_maps, **bound)
    if is_padded:
        (top, left), (height, width) = before, image_size
        outputs = [logits[:, top : top + height, left : left + width] for logits in outputs]
    return keras.Model(inputs, outputs, name=name)
