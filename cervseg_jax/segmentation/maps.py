"""Probability maps of images of any size: resized whole, or in tiles."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from cervseg_jax.errors import ConfigError
from cervseg_jax.heads import num_maps
from cervseg_jax.runs.weights import Network
from cervseg_jax.schema import Config, TiledConfig
from cervseg_jax.segmentation.predict import Predictor, make_predictor, predict_images
from cervseg_jax.segmentation.tiling import ImageLike, predict_tiled
from cervseg_jax.segmentation.tta import with_tta

MAX_IN_MEMORY = 64_000_000
"""Arrays of more numbers than this lie on disk."""

Tag = TypeVar("Tag")


def infer_predictor(networks: Sequence[Network], config: Config) -> Predictor:
    """Returns the prediction of one or several networks as `infer` makes it.

    Args:
      networks: with their weights.
      config: decides about the batch size and test-time augmentation.

    Returns:
      The predictor.
    """
    predictor = make_predictor(networks, batch_size=config.infer.batch_size)
    if not config.infer.test_time_augmentation:
        return predictor
    return predictor._replace(predict=with_tta(predictor.predict, predictor.heads))


def predict_maps(
    predictor: Predictor,
    tiled: TiledConfig | None,
    images: Iterable[tuple[Tag, ImageLike]],
    *,
    work: Path,
    on_progress: Callable[[], None] = lambda: None,
) -> Iterator[tuple[Tag, ImageLike, np.ndarray]]:
    """Predicts images, whole or in tiles.

    Args:
      predictor: the network.
      tiled: how to tile; None resizes whole images.
      images: each with a tag that comes back with the result.
      work: folder for maps that are too large for the memory.
      on_progress: called after each image, and after each row of tiles.

    Yields:
      Tag, image and probabilities [h, w, maps] in the image's size, in order.

    Raises:
      ConfigError: if the overlap is not smaller than a tile.
    """
    if tiled is None:
        waiting: list[tuple[Tag, ImageLike]] = []

        def whole() -> Iterator[np.ndarray]:
            for tag, image in images:
                waiting.append((tag, image))
                yield np.asarray(image)

        for maps in predict_images(predictor, whole()):
            tag, image = waiting.pop(0)
            yield tag, image, maps
            on_progress()
        return
    image_size = predictor.image_size
    overlap_px = min(image_size) // 4 if tiled.overlap_px is None else tiled.overlap_px
    if overlap_px >= min(image_size):
        raise ConfigError(
            f"infer.tiled.overlap_px: must be less than the network's smaller side, {min(image_size)}, got {overlap_px}"
        )
    for number, (tag, image) in enumerate(images):
        height, width = image.shape[:2]
        maps = allocate((height, width, num_maps(predictor.heads)), np.float16, work / f"maps-{number}.npy")
        rows_of_tiles = predict_tiled(
            predictor.predict,
            image,
            tile_size=image_size,
            overlap_px=overlap_px,
            batch_size=predictor.batch_size,
            on_progress=on_progress,
        )
        for first, rows in rows_of_tiles:
            maps[first : first + len(rows)] = rows
        if tiled.blend_whole:
            (small,) = predict_images(predictor, [np.asarray(image[:, :])])
            np.minimum(maps[..., 0], small[..., 0], out=maps[..., 0])
        yield tag, image, maps


def allocate(shape: tuple[int, ...], dtype: Any, path: Path) -> np.ndarray:
    """Makes an array of zeros: in memory, or in a file where it is large."""
    if math.prod(shape) <= MAX_IN_MEMORY:
        return np.zeros(shape, dtype)
    return np.lib.format.open_memmap(path, "w+", dtype, shape)
