"""Probabilities from images, in batches of one compiled shape."""

import functools
import math
from collections.abc import Callable, Iterable, Iterator

import cv2
import jax
import numpy as np
from jax.sharding import Mesh

from cervseg_jax.data.source import resize_image
from cervseg_jax.models import Apply
from cervseg_jax.training.sharding import batch_sharding, replicated
from cervseg_jax.typing import ModelState, Params
from cervseg_jax.weights import Network

Predict = Callable[[np.ndarray], np.ndarray]
"""From a full batch of images, uint8 [b, h, w, 3], to float32 probabilities [b, h, w, maps]."""
WeightedPredict = Callable[[Params, ModelState, np.ndarray], np.ndarray]
"""The same as a function of the weights: `predict(params, model_state, images)`."""


def make_predictor(network: Network, mesh: Mesh, *, batch_size: int) -> tuple[Predict, int]:
    """Returns a network as a function of full batches, and the size of these.

    Args:
      network: with its weights.
      mesh: devices over which each batch is spread.
      batch_size: the wanted size; the next larger one that the mesh divides is taken.

    Returns:
      From uint8 [b, h, w, 3] to probabilities [b, h, w, maps]; and b.
    """
    predict = functools.partial(make_predict(network.apply, mesh), network.params, network.model_state)
    return predict, math.lcm(batch_size, mesh.shape["data"])


def make_predict(apply: Apply, mesh: Mesh) -> WeightedPredict:
    """Returns the prediction function, compiled on first use.

    Args:
      apply: the network.
      mesh: devices over which each batch is spread.

    Returns:
      A function from weights and a full batch of images at the network's size to probabilities.
    """
    images_sharding = batch_sharding(mesh).image

    def probabilities(params: Params, model_state: ModelState, images: jax.Array) -> jax.Array:
        (logits, *_), _ = apply(params, model_state, images)
        return jax.nn.sigmoid(logits)

    compiled = jax.jit(probabilities, in_shardings=(replicated(mesh), replicated(mesh), images_sharding))

    def predict(params: Params, model_state: ModelState, images: np.ndarray) -> np.ndarray:
        return np.asarray(compiled(params, model_state, jax.device_put(images, images_sharding)))

    return predict


def predict_images(
    predict: Predict,
    images: Iterable[np.ndarray],
    *,
    image_size: tuple[int, int],
    batch_size: int,
) -> Iterator[np.ndarray]:
    """Streams images of any size through the network.

    Args:
      predict: from a full batch of uint8 [b, h, w, 3] to probabilities [b, h, w, maps].
      images: uint8 [h, w, 3], RGB; read as needed.
      image_size: the network's height and width.
      batch_size: rows per batch; the last one is filled up and cut.

    Yields:
      Float32 probabilities of each image in its own size, [h, w, maps], in order.
    """
    waiting: list[np.ndarray] = []
    for image in images:
        waiting.append(image)
        if len(waiting) == batch_size:
            yield from _predict_batch(predict, waiting, image_size, batch_size)
            waiting = []
    if waiting:
        yield from _predict_batch(predict, waiting, image_size, batch_size)


def _predict_batch(
    predict: Predict, images: list[np.ndarray], image_size: tuple[int, int], batch_size: int
) -> Iterator[np.ndarray]:
    resized = [resize_image(image, image_size) for image in images]
    batch = np.stack(resized + [resized[0]] * (batch_size - len(resized)))
    for image, probs in zip(images, predict(batch), strict=False):
        height, width = image.shape[:2]
        if probs.shape[:2] != (height, width):
            # OpenCV drops an axis of length one.
            probs = cv2.resize(probs, (width, height), interpolation=cv2.INTER_LINEAR).reshape(height, width, -1)
        yield probs
