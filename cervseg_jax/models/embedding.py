"""The deepest features of a network, pooled to one vector per image."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import keras

from cervseg_jax.models.build import build_with_layers, check_model_args
from cervseg_jax.models.functional import Apply, functionalize
from cervseg_jax.models.initial import ZERO_INITIALIZERS
from cervseg_jax.models.layers.backend import Backend
from cervseg_jax.models.layers.packed_layers import layers_for
from cervseg_jax.typing import ModelState, Params

WeightedFeatures = Callable[[Params, ModelState, Any], jax.Array]
"""`features(params, model_state, images)`: the weights of the whole network, and uint8 [b, h, w, 3], to [b, d]."""


def make_features(
    name: str,
    *,
    image_size: tuple[int, int],
    args: Mapping[str, Any],
    dtype: str = "float32",
    num_maps: int = 1,
    backend: Backend = "xla",
) -> WeightedFeatures:
    """Returns the function from images to the mean of a network's coarsest feature map over height and width.

    Args:
      name: a key of `MODELS`.
      image_size: height and width of the images in pixels.
      args: keyword arguments of the builder; weights of an encoder are not read.
      dtype: "float32" or "bfloat16".
      num_maps: channels of the network's output.
      backend: target of the program, see `backend_for`.

    Returns:
      A function that is compiled on its first call; no part of the network behind these features is computed.

    Raises:
      ConfigError: as `check_model_args`.
    """
    bound = check_model_args(name, image_size, args)
    if "encoder_weights" in bound:
        bound["encoder_weights"] = None
    built: list[Apply] = []

    def build() -> None:
        net = layers_for(dtype, backend)
        model = build_with_layers(name, net, image_size, bound, num_maps=num_maps, initializers=ZERO_INITIALIZERS)
        built.append(functionalize(keras.Model(model.inputs, coarsest_features(model)))[0])

    jax.eval_shape(build)

    @jax.jit
    def features(params: Params, model_state: ModelState, images: jax.Array) -> jax.Array:
        (deepest, *_), _ = built[0](params, model_state, images)
        return jnp.mean(deepest, axis=(1, 2))

    return features


def coarsest_features(model: keras.Model) -> Any:
    """Returns the last of the tensors [b, h, w, c] with the fewest pixels in a functional model.

    Example:
      >>> from cervseg_jax.models import build_model
      >>> model = build_model("unet", image_size=(32, 32), args={"base_filters": 4, "levels": 3})
      >>> coarsest_features(model).shape
      (None, 8, 8, 16)
    """
    coarsest: Any = None
    for operation in model.operations:
        if isinstance(operation, keras.Model):
            continue  # its own tensors are not part of this graph; the operations that follow have those that are
        tensors = jax.tree.leaves(operation.input, is_leaf=lambda leaf: hasattr(leaf, "shape"))
        for tensor in tensors:
            if len(tensor.shape) == 4 and (coarsest is None or _num_pixels(tensor) <= _num_pixels(coarsest)):
                coarsest = tensor
    return coarsest


def _num_pixels(tensor: Any) -> int:
    return tensor.shape[1] * tensor.shape[2]
