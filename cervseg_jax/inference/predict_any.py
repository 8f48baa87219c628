"""Probability maps of images of any size: resized whole, or in tiles."""

import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from cervseg_jax.errors import ConfigError
from cervseg_jax.heads import num_maps
from cervseg_jax.inference.predict import Predict, make_predictor, predict_images
from cervseg_jax.inference.symmetries import with_symmetries
from cervseg_jax.inference.tiling import ImageLike, predict_tiled
from cervseg_jax.sections import Config
from cervseg_jax.training.sharding import make_mesh
from cervseg_jax.weights import Network

MAX_IN_MEMORY = 64_000_000
"""Arrays of more numbers than this lie on disk."""

Tag = TypeVar("Tag")


def predictor(network: Network, config: Config) -> tuple[Predict, int]:
    """Returns the network as a function of full batches, and the batch size.

    Args:
      network: with its weights.
      config: decides about devices, the batch size and test-time augmentation.

    Returns:
      From uint8 [b, h, w, 3] to probabilities [b, h, w, maps]; and b.
    """
    mesh = make_mesh(config.runtime.mesh, batch_size=config.infer.batch_size)
    predict, batch_size = make_predictor(network, mesh, batch_size=config.infer.batch_size)
    if config.infer.test_time_augmentation:
        predict = with_symmetries(predict, network.contract.heads)
    return predict, batch_size


def predict_any(
    network: Network,
    config: Config,
    images: Iterable[tuple[Tag, ImageLike]],
    *,
    work: Path,
    each: Callable[[], None] = lambda: None,
) -> Iterator[tuple[Tag, ImageLike, np.ndarray]]:
    """Predicts images, whole or in tiles as the config says.

    Args:
      network: with its weights.
      config: the recipe.
      images: each with a tag that comes back with the result.
      work: folder for maps that are too large for the memory.
      each: called after each image, and after each row of tiles.

    Yields:
      Tag, image and probabilities [h, w, maps] in the image's size, in order.
    """
    predict, batch_size = predictor(network, config)
    image_size = network.contract.image_size
    if config.infer.tiled is None:
        waiting: list[tuple[Tag, ImageLike]] = []

        def whole() -> Iterator[np.ndarray]:
            for tag, image in images:
                waiting.append((tag, image))
                yield np.asarray(image)

        for maps in predict_images(predict, whole(), image_size=image_size, batch_size=batch_size):
            tag, image = waiting.pop(0)
            yield tag, image, maps
            each()
        return
    overlap_px = config.infer.tiled.overlap_px
    overlap_px = min(image_size) // 4 if overlap_px is None else overlap_px
    if overlap_px >= min(image_size):
        raise ConfigError(
            f"infer.tiled.overlap_px: must be less than the network's smaller side, {min(image_size)}, got {overlap_px}"
        )
    for number, (tag, image) in enumerate(images):
        height, width = image.shape[:2]
        maps = room((height, width, num_maps(network.contract.heads)), np.float16, work / f"maps-{number}.npy")
        tiled = predict_tiled(
            predict, image, tile_size=image_size, overlap_px=overlap_px, batch_size=batch_size, each=each
        )
        for first, rows in tiled:
            maps[first : first + len(rows)] = rows
        if config.infer.tiled.blend_whole:
            (small,) = predict_images(predict, [np.asarray(image[:, :])], image_size=image_size, batch_size=batch_size)
            np.minimum(maps[..., 0], small[..., 0], out=maps[..., 0])
        yield tag, image, maps


def room(shape: tuple[int, ...], dtype: Any, path: Path) -> np.ndarray:
    """Makes an array of zeros: in memory, or in a file where it is large."""
    if math.prod(shape) <= MAX_IN_MEMORY:
        return np.zeros(shape, dtype)
    return np.lib.format.open_memmap(path, "w+", dtype, shape)
