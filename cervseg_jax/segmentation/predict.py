"""Prediction of images of any size, resized to the network's and back, in batches of one compiled shape."""

import functools
import itertools
import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

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

ACCELERATOR_CALLS = 4
"""Calls that are under way at once on accelerators: while one computes, the others prepare and use their images."""

Tag = TypeVar("Tag")


class Predictor(NamedTuple):
    """A prediction function and its input."""

    predict: Predict
    """Takes up to `batch_size` images, and may be called by several threads."""
    image_size: tuple[int, int]
    """Height and width of its input in pixels."""
    batch_size: int
    """Images per call."""
    heads: tuple[Head, ...]
    """Heads of the network, in the order of the output channels."""
    num_calls: int = 1
    """Calls that may be under way at once."""


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
    batch_size = math.lcm(batch_size, num_batch_shards(mesh))
    num_calls = 1 if mesh.devices.flat[0].platform == "cpu" else ACCELERATOR_CALLS
    return Predictor(with_padding(predict, batch_size), first.image_size, batch_size, first.heads, num_calls)


def with_padding(predict: Predict, batch_size: int) -> Predict:
    """Returns a prediction of up to `batch_size` images.

    Args:
      predict: takes full batches; a shorter one is filled with copies of its first image.
      batch_size: images per call.
    """

    def predict_some(images: np.ndarray) -> np.ndarray:
        missing = batch_size - len(images)
        filled = np.concatenate([images, np.repeat(images[:1], missing, axis=0)]) if missing else images
        return predict(filled)[: len(images)]

    return predict_some


def predict_ahead(
    predictor: Predictor, batches: Iterable[tuple[Tag, UInt8[np.ndarray, "_ _ _ 3"]]]
) -> Iterator[tuple[Tag, Float32[np.ndarray, "_ _ _ maps"]]]:
    """Predicts batches in the background, while the next ones are made and the previous one is used.

    Args:
      predictor: the prediction function.
      batches: up to `batch_size` images of its size each, with a tag; consumed lazily.

    Yields:
      Tag and probabilities of each batch, in order.
    """
    pending: deque[tuple[Tag, Future[np.ndarray]]] = deque()
    with ThreadPoolExecutor(predictor.num_calls, thread_name_prefix="predict") as pool:
        for tag, images in batches:
            pending.append((tag, pool.submit(predictor.predict, images)))
            if len(pending) > predictor.num_calls:
                first, predicted = pending.popleft()
                yield first, predicted.result()
        for tag, predicted in pending:
            yield tag, predicted.result()


def predict_images(
    predictor: Predictor, images: Iterable[UInt8[np.ndarray, "_ _ 3"]]
) -> Iterator[Float32[np.ndarray, "_ _ maps"]]:
    """Predicts images resized to the network's input size, and resizes the maps back.

    Args:
      predictor: the prediction function.
      images: RGB, of any size; consumed lazily, up to two batches ahead.

    Yields:
      Probabilities of each image in its own size, in order.
    """

    def batches() -> Iterator[tuple[list[np.ndarray], np.ndarray]]:
        rest = iter(images)
        while batch := list(itertools.islice(rest, predictor.batch_size)):
            yield batch, np.stack([resize_image(image, predictor.image_size) for image in batch])

    for batch, maps in predict_ahead(predictor, batches()):
        for image, probs in zip(batch, maps, strict=True):
            height, width = image.shape[:2]
            if probs.shape[:2] != (height, width):
                # OpenCV drops an axis of length one.
                probs = cv2.resize(probs, (width, height), interpolation=cv2.INTER_LINEAR).reshape(height, width, -1)
            yield probs
