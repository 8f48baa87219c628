"""Building a network by name, with checked arguments and padding to the sizes that it needs."""

from collections.abc import Mapping
from typing import Any

import jax
import keras

from cervseg_jax.components import bind, lookup
from cervseg_jax.errors import ConfigError
from cervseg_jax.models.functional import Apply, functionalize
from cervseg_jax.models.initial import NUMPY_INITIALIZERS, ZERO_INITIALIZERS
from cervseg_jax.models.layers.backend import Backend
from cervseg_jax.models.layers.blocks import Layers
from cervseg_jax.models.layers.packed_layers import layers_for
from cervseg_jax.models.table import MODELS
from cervseg_jax.typing import ModelState, Params

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
      ConfigError: for an unknown model, a wrong argument or a size too small for the network.
    """
    bound, padded = _bound_and_padded(name, image_size, args)
    if any(after - before >= before for before, after in zip(image_size, padded, strict=True)):
        raise ConfigError(
            f"model.image_size: {name} with these model.args needs multiples of {_divisor(name, bound)}; "
            f"{list(image_size)} is too small to be padded to {list(padded)}; take fewer levels or larger images"
        )
    return bound


def padded_size(name: str, image_size: tuple[int, int], args: Mapping[str, Any]) -> tuple[int, int]:
    """Returns the height and width at which a network computes: `image_size` rounded up to multiples of its divisor.

    Example:
      >>> padded_size("unet", (100, 64), {"levels": 4})
      (104, 64)
    """
    return _bound_and_padded(name, image_size, args)[1]


def size_divisor(name: str, args: Mapping[str, Any]) -> int:
    """Returns the number that must divide height and width for a network to work without padding.

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
    backend: Backend = "xla",
) -> keras.Model:
    """Builds a network by name.

    Images whose size the network cannot halve often enough are padded by reflection, and the logits are cropped.

    Args:
      name: a key of `MODELS`.
      image_size: height and width in pixels.
      args: keyword arguments of the builder.
      dtype: "float32", or "bfloat16" for bfloat16 compute with float32 weights and logits.
      num_channels: channels of the images.
      num_maps: channels of the output.
      backend: target of the program, see `backend_for`. It changes neither names nor weights.

    Returns:
      A Keras model from images in 0..255 to a list of logits: the prediction, then side outputs.

    Raises:
      ConfigError: as `check_model_args`.
    """
    bound = check_model_args(name, image_size, args)
    net = layers_for(dtype, backend)
    return build_with_layers(name, net, image_size, bound, num_channels=num_channels, num_maps=num_maps)


def build_abstract(
    name: str,
    *,
    image_size: tuple[int, int],
    args: Mapping[str, Any],
    dtype: str = "float32",
    num_maps: int = 1,
    backend: Backend = "xla",
) -> tuple[Apply, Params, ModelState]:
    """Builds a network without values: draws no initial weights and allocates no memory.

    Args:
      name: see `build_model`, as for all arguments.
      image_size: height and width in pixels.
      args: keyword arguments of the builder; weights of an encoder are not read.
      dtype: "float32" or "bfloat16".
      num_maps: channels of the output.
      backend: target of the program.

    Returns:
      The pure forward pass, and shapes and dtypes in place of the trainable variables and the BatchNorm statistics.

    Raises:
      ConfigError: as `check_model_args`.
    """
    bound = check_model_args(name, image_size, args)
    if "encoder_weights" in bound:
        bound["encoder_weights"] = None
    built: list[tuple[Apply, Params, ModelState]] = []

    def build() -> None:
        net = layers_for(dtype, backend)
        model = build_with_layers(name, net, image_size, bound, num_maps=num_maps, initializers=ZERO_INITIALIZERS)
        apply, *values = functionalize(model)
        shapes: Any = [{path: jax.ShapeDtypeStruct(x.shape, x.dtype) for path, x in tree.items()} for tree in values]
        built.append((apply, *shapes))

    jax.eval_shape(build)
    return built[0]


def build_with_layers(
    name: str,
    net: Layers,
    image_size: tuple[int, int],
    bound: Mapping[str, Any],
    *,
    num_channels: int = 3,
    num_maps: int = 1,
    initializers: Mapping[str, Any] = NUMPY_INITIALIZERS,
) -> keras.Model:
    """Builds a network with a given layer factory.

    Args:
      name: a key of `MODELS`.
      net: creates the layers, and lists them in order of creation afterwards.
      image_size: height and width in pixels.
      bound: all arguments of the builder, as `check_model_args` returns them.
      num_channels: channels of the images.
      num_maps: channels of the output.
      initializers: initializers that replace Keras' own by name.

    Returns:
      As `build_model`.
    """
    inputs = keras.Input((*image_size, num_channels), name="image")
    padded = padded_size(name, image_size, bound)
    before = [(after - size) // 2 for size, after in zip(image_size, padded, strict=True)]
    widths = [(0, 0)] + [(b, after - size - b) for b, size, after in zip(before, image_size, padded, strict=True)]
    is_padded = padded != tuple(image_size)
    images = keras.ops.pad(inputs, [*widths, (0, 0)], mode="reflect") if is_padded else inputs
    with keras.utils.custom_object_scope(dict(initializers)):
        outputs = MODELS[name].build(net, images, num_maps=num_maps, **bound)
    if is_padded:
        (top, left), (height, width) = before, image_size
        outputs = [logits[:, top : top + height, left : left + width] for logits in outputs]
    return keras.Model(inputs, outputs, name=name)
