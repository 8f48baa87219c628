"""All networks under one contract, and the bridge from Keras to pure functions.

A builder takes `image_size` (height, width), its own keyword arguments and `dtype`, and returns a Keras model
from RGB images in 0..255, [b, h, w, 3], to logits, [b, h, w, 1]. A new model is one file and one line in `MODELS`.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import keras

from cervseg_jax.components import bind, lookup
from cervseg_jax.errors import ConfigError
from cervseg_jax.models import unet
from cervseg_jax.models.functional import Apply, functionalize

__all__ = ["MODELS", "Apply", "ModelEntry", "build_model", "check_model_args", "functionalize"]


class ModelEntry(NamedTuple):
    """One line of the model table."""

    build: Callable[..., keras.Model]
    size_divisor: Callable[[Mapping[str, Any]], int]
    """From the bound arguments to the number that must divide height and width."""
    paper: str


MODELS: Mapping[str, ModelEntry] = {
    "unet": ModelEntry(unet.build_unet, unet.size_divisor, "Ronneberger et al. 2015, arXiv:1505.04597"),
}
"""Networks by config name."""

_SUPPLIED = ("image_size", "dtype")


def check_model_args(name: str, image_size: tuple[int, int], args: Mapping[str, Any]) -> dict[str, Any]:
    """Checks a model's arguments, and the image size against them.

    Args:
      name: a key of `MODELS`.
      image_size: height and width in pixels.
      args: what the user wrote under `model.args`.

    Returns:
      All arguments of the builder, defaults included.

    Raises:
      ConfigError: for an unknown model, a wrong argument or a size that the network cannot halve often enough.
    """
    entry = lookup(MODELS, name, key="model.name")
    bound = bind(entry.build, args, key="model.args", reserved=_SUPPLIED)
    try:
        divisor = entry.size_divisor(bound)
    except ValueError as error:
        raise ConfigError(f"model.args: {error}") from None
    if any(size % divisor for size in image_size):
        fitting = [max(1, round(size / divisor)) * divisor for size in image_size]
        raise ConfigError(
            f"model.image_size: {name} with these model.args needs multiples of {divisor}, "
            f"got {list(image_size)}; {fitting} would fit, or fewer levels"
        )
    return bound


def build_model(
    name: str, *, image_size: tuple[int, int], args: Mapping[str, Any], dtype: str = "float32"
) -> keras.Model:
    """Builds a network by name.

    Args:
      name: a key of `MODELS`.
      image_size: height and width in pixels.
      args: keyword arguments of the builder.
      dtype: "float32", or "bfloat16" for computing in bfloat16 with float32 weights and logits.

    Returns:
      A Keras model with logits as output.

    Raises:
      ConfigError: as `check_model_args`.
    """
    bound = check_model_args(name, image_size, args)
    return MODELS[name].build(image_size=image_size, dtype=dtype, **bound)
