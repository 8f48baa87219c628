"""Prediction of images of any size, resized to the network's and back, in batches of one compiled shape."""

import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from cervseg_jax.data.resize import resize_image
from cervseg_jax.engine.predict import Predict, make_predict
from cervseg_jax.errors import ConfigError
from cervseg_jax.heads import Head
from cervseg_jax.models import Backend, backend_for
from cervseg_jax.runs.weights import Network
from cervseg_jax.runtime.mesh import make_mesh, num_batch_shards
from cervseg_jax.segmentation.tta import with_tta


class Predictor(NamedTuple):
    """A compiled prediction function and the one input shape that it takes."""

    predict: Predict
    image_size: tuple[int, int]
    """Height and width of its input in pixels."""
    batch_size: int
    """Images per call."""
    heads: tuple[Head, ...]
    """Heads of the network, in the order of the output channels."""


def make_predictor(
    networks: Sequence[Network],
    *,
    batch_size: int,
    test_time_augmentation: bool = False,
    backend: Backend | None = None,
) -> Predictor:
    """Returns the prediction of one network, or the mean of several, on the devices of this process.

    Args:
      networks: networks with weights; of equal heads and image size.
      batch_size: rounded up to a multiple of the number of batch shards.
      test_time_augmentation: average over flipped and transposed copies, see `with_tta`.
      backend: implementation of the convolutions; None: the fastest one for the devices, see `backend_for`.

    Returns:
      The predictor.

    Raises:
      ConfigError: if heads or image sizes differ.

    Reference: Lakshminarayanan et al. 2017, arXiv:1612.01474, section 2.4 (several networks).
    """
    first = networks[0].contract
    for other in networks[1:]:
        if (other.contract.heads, other.contract.image_size) != (first.heads, first.image_size):
            raise ConfigError(
                "the runs cannot be averaged, as their heads or image sizes differ: "
                + " and ".join(
                    f"{' '.join(contract.heads)} at {contract.image_size[0]}x{contract.image_size[1]}"
                    for contract in (first, other.contract)
                )
            )
    mesh = make_mesh(None, batch_size=batch_size)
    members = [
        functools.partial(
            make_predict(network.apply_for(backend or backend_for(mesh)), mesh), network.params, network.model_state
        )
        for network in networks
    ]

    def mean(images: UInt8[np.ndarray, "b h w 3"]) -> Float32[np.ndarray, "b h w maps"]:
        return np.mean([predict(images) for predict in members], axis=0)

    predict = mean if len(members) > 1 else members[0]
    if test_time_augmentation:
        predict = with_tta(predict, first.heads)
    return Predictor(predict, first.image_size, math.lcm(batch_size, num_batch_shards(mesh)), first.heads)


def predict_images(
    predictor: Predictor, images: Iterable[UInt8[np.ndarray, "_ _ 3"]]
) -> Iterator[Float32[np.ndarray, "_ _ maps"]]:
    """Predicts images resized to the network's input size, and resizes the maps back.

    While a batch is predicted, the images of the next one are read and the maps of the previous one are consumed.

    Args:
      predictor: the prediction function.
      images: RGB, of any size; consumed lazily, up to two batches ahead.

    Yields:
      Probabilities of each image in its own size, in order.
    """
    images = iter(images)
    pending: list[tuple[list[np.ndarray], Future[np.ndarray]]] = []
    with ThreadPoolExecutor(1, thread_name_prefix="predict") as pool:
        while batch := list(itertools.islice(images, predictor.batch_size)):
            pending.append((batch, pool.submit(predictor.predict, _stacked(batch, predictor))))
            if len(pending) == 2:
                yield from _resized_back(*pending.pop(0))
        for batch, predicted in pending:
            yield from _resized_back(batch, predicted)


def _stacked(images: Sequence[np.ndarray], predictor: Predictor) -> np.ndarray:
    """Returns a full batch, uint8 [b, h, w, 3]; a short one is padded with copies of its first image."""
    resized = [resize_image(image, predictor.image_size) for image in images]
    return np.stack(resized + [resized[0]] * (predictor.batch_size - len(resized)))


def _resized_back(images: Sequence[np.ndarray], predicted: Future[np.ndarray]) -> Iterator[np.ndarray]:
    for image, probs in zip(images, predicted.result(), strict=False):
        height, width = image.shape[:2]
        if probs.shape[:2] != (height, width):
            # OpenCV drops an axis of length one.
            probs = cv2.resize(probs, (width, height), interpolation=cv2.INTER_LINEAR).reshape(height, width, -1)
        yield probs
