"""Probability maps of images of any size: resized whole, or in tiles."""

import math
import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from cervseg_jax.data.resize import resize_image
from cervseg_jax.errors import ConfigError, DataError
from cervseg_jax.heads import num_maps
from cervseg_jax.schema import TiledConfig
from cervseg_jax.segmentation.bands import Bands
from cervseg_jax.segmentation.candidates import CandidateCollector, Prediction, dense_heads, split_prediction
from cervseg_jax.segmentation.images import ImageLike
from cervseg_jax.segmentation.predict import Predictor, predict_images
from cervseg_jax.segmentation.scale import ImageScale
from cervseg_jax.segmentation.tiling import num_tile_rows, predict_tiled

MAX_ELEMENTS_IN_MEMORY = 64_000_000
"""Larger arrays are memory-mapped from a temporary file."""

Tag = TypeVar("Tag")
Found = TypeVar("Found")


class ImageMaps(NamedTuple):
    """An image and its prediction."""

    image: ImageLike
    prediction: Prediction
    """In the image's size; its maps are float16 if tiled, else float32."""
    scale: ImageScale | None
    """The size of nuclei that was taken; None for networks that were not trained at one scale."""


def predict_maps(
    predictor: Predictor,
    tiled: TiledConfig | None,
    images: Iterable[tuple[Tag, ImageLike]],
    *,
    scale_of: Callable[[Tag, ImageLike], ImageScale] | None = None,
    bands_of: Callable[[Tag], Bands | None] = lambda tag: None,
    scratch: Path | None = None,
    on_progress: Callable[[], None] = lambda: None,
    on_failure: Callable[[Tag, Exception], None] | None = None,
) -> Iterator[tuple[Tag, ImageMaps]]:
    """Predicts images, whole or in tiles.

    Where the predictor allows several calls at once, so many images are predicted at once, but slides one by one.

    Args:
      predictor: the prediction function.
      tiled: settings of the tiles; None resizes whole images.
      images: images of any size, each with a tag that is yielded with its result.
      scale_of: for networks of one scale: returns the size of nuclei in an image. Images are then predicted in tiles,
        with the settings of `tiled` or the defaults.
      bands_of: bands of an image that other processes predict with this one, or have begun.
      scratch: folder for the temporary files of large maps; None: the system's.
      on_progress: called after each image, and after each row of tiles.
      on_failure: called with the tag of an image whose tiles cannot be read or held; None raises the error.

    Yields:
      Tag, and image with its prediction, in order.

    Raises:
      ConfigError: if the overlap is not smaller than a tile.
    """
    if tiled is None and scale_of is None:
        waiting: list[tuple[Tag, ImageLike]] = []

        def whole() -> Iterator[np.ndarray]:
            for tag, image in images:
                waiting.append((tag, image))
                yield np.asarray(image)

        for maps in predict_images(predictor, whole()):
            tag, image = waiting.pop(0)
            yield tag, ImageMaps(image, split_prediction(maps, predictor.heads, image_size=predictor.image_size), None)
            on_progress()
        return
    settings = tiled or TiledConfig()

    def predict(item: tuple[Tag, ImageLike]) -> tuple[Tag, ImageMaps | Exception]:
        tag, image = item
        try:
            scale = None if scale_of is None else scale_of(tag, image)
            scaled = predictor if scale is None else scaled_predictor(predictor, scale.factor)
            stretch = tuple(own / its for own, its in zip(scaled.image_size, predictor.image_size, strict=True))
            tiles = _Tiles(scaled, settings, image, on_progress)
            found = _tiled_prediction(tiles, bands_of(tag), stretch=(stretch[0], stretch[1]), scratch=scratch)
            return tag, ImageMaps(image, found, scale)
        except (DataError, OSError, MemoryError) as error:
            if on_failure is None:
                raise
            return tag, error

    for tag, found in _map_images(predict, images, num_calls=predictor.num_calls):
        if not isinstance(found, Exception):
            yield tag, found
        elif on_failure is not None:
            on_failure(tag, found)


def _map_images(
    predict: Callable[[tuple[Tag, ImageLike]], Found], images: Iterable[tuple[Tag, ImageLike]], *, num_calls: int
) -> Iterator[Found]:
    """Yields the results of images in order, several of which are computed at once; slides are computed alone."""
    pending: deque[Future[Found]] = deque()
    with ThreadPoolExecutor(num_calls, thread_name_prefix="image") as pool:
        for item in images:
            is_alone = num_calls == 1 or not isinstance(item[1], np.ndarray)
            while len(pending) >= (1 if is_alone else num_calls):
                yield pending.popleft().result()
            if is_alone:
                yield predict(item)
            else:
                pending.append(pool.submit(predict, item))
        while pending:
            yield pending.popleft().result()


def predict_bands(
    predictor: Predictor,
    tiled: TiledConfig | None,
    image: ImageLike,
    bands: Bands,
    *,
    part: int,
    num_parts: int,
    factor: float | None = None,
    on_progress: Callable[[], None] = lambda: None,
) -> None:
    """Predicts one of several equal parts of a slide, for the process that calls `predict_maps` with these bands.

    Args:
      predictor: the prediction function.
      tiled: settings of the tiles; None: the defaults.
      image: the slide.
      bands: where the probabilities are kept.
      part: index of the part.
      num_parts: number of parts.
      factor: of the image's size at which it is predicted, for networks of one scale.
      on_progress: called after each row of tiles.

    Raises:
      DataError: if the slide is damaged.
      OSError: if it cannot be read, or a band cannot be written.
    """
    scaled = predictor if factor is None else scaled_predictor(predictor, factor)
    tiles = _Tiles(scaled, tiled or TiledConfig(), image, on_progress)
    bands.predict_part(tiles.predict, tiles.num_rows, part=part, num_parts=num_parts)


def scaled_predictor(predictor: Predictor, factor: float) -> Predictor:
    """Returns a predictor whose tiles are resized to the network's input, and their probabilities back.

    Args:
      predictor: the network.
      factor: of the image's size at which the network sees it.

    Returns:
      A predictor of tiles in the image's own pixels.
    """
    height, width = (max(8, round(length / factor)) for length in predictor.image_size)

    def predict(tiles: np.ndarray) -> np.ndarray:
        maps = predictor.predict(np.stack([resize_image(tile, predictor.image_size) for tile in tiles]))
        return np.stack([resize_image(probs, (height, width)).reshape(height, width, -1) for probs in maps])

    return predictor._replace(predict=predict, image_size=(height, width))


def tile_overlap(tiled: TiledConfig, image_size: tuple[int, int]) -> int:
    """Returns the overlap of neighboring tiles in pixels: as configured, or a quarter of the smaller side.

    Args:
      tiled: settings of the tiles.
      image_size: height and width of a tile.

    Raises:
      ConfigError: if the overlap is not smaller than a tile.
    """
    overlap_px = min(image_size) // 4 if tiled.overlap_px is None else tiled.overlap_px
    if overlap_px >= min(image_size):
        raise ConfigError(
            f"infer.tiled.overlap_px: must be less than the network's smaller side, {min(image_size)}, got {overlap_px}"
        )
    return overlap_px


class _Tiles:
    """The tiles of one image."""

    def __init__(
        self, predictor: Predictor, tiled: TiledConfig, image: ImageLike, on_progress: Callable[[], None]
    ) -> None:
        self.predictor, self.tiled, self.image = predictor, tiled, image
        self._on_progress = on_progress
        self._overlap_px = tile_overlap(tiled, predictor.image_size)

    @property
    def num_rows(self) -> int:
        return num_tile_rows(self.image.shape[0], self.predictor.image_size[0], self._overlap_px)

    def predict(self, tile_rows: range | None = None) -> Iterator[tuple[int, np.ndarray]]:
        """Predicts rows of tiles, see `predict_tiled`."""
        return predict_tiled(
            self.predictor, self.image, overlap_px=self._overlap_px, tile_rows=tile_rows, on_progress=self._on_progress
        )


def _tiled_prediction(
    tiles: _Tiles, bands: Bands | None, *, stretch: tuple[float, float], scratch: Path | None
) -> Prediction:
    """Returns the prediction of one image, its maps float16; `stretch` as of `CandidateCollector`."""
    (height, width), heads = tiles.image.shape[:2], tiles.predictor.heads
    maps = allocate((height, width, num_maps(dense_heads(heads))), np.float16, scratch)
    collector = CandidateCollector(heads, stretch=stretch)
    first = 0
    shape = (height, width, num_maps(heads))
    parts = (
        (rows for _, rows in tiles.predict()) if bands is None else bands.complete(tiles.predict, tiles.num_rows, shape)
    )
    for rows in parts:
        maps[first : first + len(rows)] = collector.add(first, rows)
        first += len(rows)
    if tiles.tiled.blend_whole:
        (whole_image,) = predict_images(tiles.predictor, [np.asarray(tiles.image[:, :])])
        np.minimum(maps[..., 0], whole_image[..., 0], out=maps[..., 0])
    return Prediction(maps, collector.result())


def allocate(shape: tuple[int, ...], dtype: Any, scratch: Path | None = None) -> np.ndarray:
    """Returns an array of zeros, memory-mapped where it is large.

    The file of a mapped array has no name, so that it disappears with the array, or with the process.

    Args:
      shape: shape of the array.
      dtype: NumPy type.
      scratch: folder whose disk holds a large array; None: the system's temporary folder.

    Raises:
      OSError: if the disk has too little space.
    """
    if math.prod(shape) <= MAX_ELEMENTS_IN_MEMORY:
        return np.zeros(shape, dtype)
    with tempfile.TemporaryFile(dir=scratch) as file:
        if hasattr(os, "posix_fallocate"):  # a disk that fills up later would kill the process with SIGBUS
            os.posix_fallocate(file.fileno(), 0, math.prod(shape) * np.dtype(dtype).itemsize)
        return np.memmap(file, dtype, "w+", shape=shape)
