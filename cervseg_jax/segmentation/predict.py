"""Probabilities from images, in batches of one compiled shape."""

import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import cv2
import numpy as np

from cervseg_jax.data.resize import resize_image
from cervseg_jax.engine.predict import Predict, make_predict
from cervseg_jax.errors import ConfigError
from cervseg_jax.heads import Head
from cervseg_jax.models import backend_for
from cervseg_jax.runs.weights import Network
from cervseg_jax.runtime.mesh import make_mesh, num_batch_shards


class Predictor(NamedTuple):
    """A network that is ready for images."""

    predict: Predict
    image_size: tuple[int, int]
    """Height and width of the images that `predict` takes."""
    batch_size: int
    """How many of them."""
    heads: tuple[Head, ...]
    """What the maps are."""


def make_predictor(networks: Sequence[Network], *, batch_size: int) -> Predictor:
    """Returns the mean prediction of one or several networks, on the devices of this process.

    Args:
      networks: with their weights; of equal heads and image size.
      batch_size: the wanted size; the next larger one that the mesh divides is taken.

    Returns:
      The predictor.

    Raises:
      ConfigError: if the networks do not belong together.

    Reference: Lakshminarayanan et al. 2017, arXiv:1612.01474, section 2.4 (several networks).
    """
    first = networks[0].contract
    for other in networks[1:]:
        if (other.contract.heads, other.contract.image_size) != (first.heads, first.image_size):
            raise ConfigError(
                "the runs do not belong together: "
                + " and ".join(
                    f"{' '.join(contract.heads)} at {contract.image_size[0]}x{contract.image_size[1]}"
                    for contract in (first, other.contract)
                )
            )
    mesh = make_mesh(None, batch_size=batch_size)
    members = [
        functools.partial(make_predict(network.apply_for(backend_for(mesh)), mesh), network.params, network.model_state)
        for network in networks
    ]

    def mean(images: np.ndarray) -> np.ndarray:
        return np.mean([predict(images) for predict in members], axis=0)

    batch_size = math.lcm(batch_size, num_batch_shards(mesh))
    return Predictor(mean if len(members) > 1 else members[0], first.image_size, batch_size, first.heads)


def predict_images(predictor: Predictor, images: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Streams images of any size through a network, resized to its own.

    A batch is predicted while the images of the next one are read and the maps of the one before are used.

    Args:
      predictor: the network.
      images: uint8 [h, w, 3], RGB; read as needed, up to two batches ahead.

    Yields:
      Float32 probabilities of each image in its own size, [h, w, maps], in order.
    """
    images = iter(images)
    under_way: list[tuple[list[np.ndarray], Future[np.ndarray]]] = []
    with ThreadPoolExecutor(1, thread_name_prefix="predict") as pool:
        while batch := list(itertools.islice(images, predictor.batch_size)):
            under_way.append((batch, pool.submit(predictor.predict, _stacked(batch, predictor))))
            if len(under_way) == 2:
                yield from _in_own_size(*under_way.pop(0))
        for last in under_way:
            yield from _in_own_size(*last)


def _stacked(images: Sequence[np.ndarray], predictor: Predictor) -> np.ndarray:
    resized = [resize_image(image, predictor.image_size) for image in images]
    return np.stack(resized + [resized[0]] * (predictor.batch_size - len(resized)))


def _in_own_size(images: Sequence[np.ndarray], predicted: Future[np.ndarray]) -> Iterator[np.ndarray]:
    for image, probs in zip(images, predicted.result(), strict=False):
        height, width = image.shape[:2]
        if probs.shape[:2] != (height, width):
            # OpenCV drops an axis of length one.
            probs = cv2.resize(probs, (width, height), interpolation=cv2.INTER_LINEAR).reshape(height, width, -1)
        yield probs
