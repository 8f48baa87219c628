"""The compiled prediction function of a network."""

import threading
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh

from cervseg_jax.data.batch import batch_sharding
from cervseg_jax.models import Apply
from cervseg_jax.runtime.mesh import replicated, shard_arrays
from cervseg_jax.typing import ModelState, Params

Predict = Callable[[np.ndarray], np.ndarray]
"""Maps a full batch of images, uint8 [b, h, w, 3], to float32 probabilities [b, h, w, maps]."""
WeightedPredict = Callable[[Params, ModelState, np.ndarray], np.ndarray]
"""`predict(params, model_state, images)`: `Predict` with the weights as arguments."""


def make_predict(apply: Apply, mesh: Mesh) -> WeightedPredict:
    """Returns the prediction function, compiled on first use.

    Args:
      apply: the network, built for the backend of `mesh`.
      mesh: devices over which each batch is sharded.

    Returns:
      A function of weights and a full batch of images in the network's size; returns probabilities.
    """
    images_sharding = batch_sharding(mesh).image

    def probabilities(params: Params, model_state: ModelState, images: jax.Array) -> jax.Array:
        (logits, *_), _ = apply(params, model_state, images)
        return jax.nn.sigmoid(logits)

    compiled = jax.jit(probabilities, in_shardings=(None, None, images_sharding), out_shardings=replicated(mesh))

    lock = threading.Lock()  # several threads may call; all devices must receive the calls in one order

    def predict(params: Params, model_state: ModelState, images: np.ndarray) -> np.ndarray:
        with lock:
            probs = compiled(params, model_state, shard_arrays(images, images_sharding))
        return np.asarray(probs)

    return predict
