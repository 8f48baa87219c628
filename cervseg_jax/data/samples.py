"""Reading samples, once or as often as they are asked for."""

import functools
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2
import numpy as np

from cervseg_jax.choices import BitDepth, MaskRule
from cervseg_jax.data.covered_files import load_covered
from cervseg_jax.data.decode import read_image, read_mask
from cervseg_jax.data.label_files import read_labels
from cervseg_jax.data.pairs import Pair
from cervseg_jax.data.resize import border_color, resize_image, resize_mask, scaled_size
from cervseg_jax.errors import DataError
from cervseg_jax.extents import Extent, extents_of
from cervseg_jax.heads import needs_instances
from cervseg_jax.schema import Config


class Sample(NamedTuple):
    """One image with its mask, and its instance labels where it has them, all of one size."""

    image: np.ndarray
    """uint8 [h, w, 3], RGB."""
    mask: np.ndarray
    """uint8 [h, w], 0 or 1."""
    instances: np.ndarray | None = None
    """Integer labels [h, w], 0 for background."""
    covered: tuple[np.ndarray, ...] = ()
    """Labels [h, w] of the nuclei that others partly cover, whole; see `extents`."""


def load_sample(
    pair: Pair,
    *,
    image_size: tuple[int, int],
    mask_rule: MaskRule,
    bit_depth: BitDepth = "auto",
    with_instances: bool = False,
) -> Sample:
    """Reads a pair at the network's size.

    Args:
      pair: the files.
      image_size: height and width in pixels.
      mask_rule: see `decode_mask`.
      bit_depth: see `decode_image`.
      with_instances: read the instance labels as well, where there are any.

    Returns:
      Image and labels.

    Raises:
      DataError: if a file is bad.
    """
    mask = read_mask(pair.mask_path, rule=mask_rule).mask
    size = image_size if pair.scale is None else scaled_size(mask.shape, pair.scale)
    instances, covered = None, ()
    if with_instances and pair.instances_path is not None:
        instances = resize_mask(read_instances(pair, mask.shape), size)
        covered = tuple(resize_mask(layer, size) for layer in read_covered(pair, mask.shape))
    image = read_image(pair.image_path, bit_depth=bit_depth)
    require_same_size(pair, image.shape, mask.shape)
    sample = Sample(resize_image(image, size), resize_mask(mask, size), instances, covered)
    return sample if pair.window is None else _window(sample, pair.window, image_size)


def require_same_size(pair: Pair, image_shape: Sequence[int], mask_shape: Sequence[int]) -> None:
    """Checks that a pair's mask has the size of its image.

    Raises:
      DataError: if it has another one.
    """
    if tuple(image_shape[:2]) != tuple(mask_shape[:2]):
        raise DataError(
            f"{pair.image_path}: is {image_shape[1]}x{image_shape[0]}, "
            f"its mask {pair.mask_path} is {mask_shape[1]}x{mask_shape[0]}"
        )


def _window(sample: Sample, start: tuple[int, int], size: tuple[int, int]) -> Sample:
    """Cuts a window out of a sample; where it ends beyond the image, it has the color of the border."""
    (top, left), (height, width) = start, size
    rows, columns = sample.mask[top : top + height, left : left + width].shape
    below, right = height - rows, width - columns

    def cut(labels: np.ndarray) -> np.ndarray:
        return np.pad(labels[top : top + height, left : left + width], ((0, below), (0, right)))

    def cut_image(picture: np.ndarray) -> np.ndarray:
        part = picture[top : top + height, left : left + width]
        color = border_color(part)
        return np.asarray(cv2.copyMakeBorder(part, 0, below, 0, right, cv2.BORDER_CONSTANT, value=color))

    return map_sample(sample, cut_image, cut)


def map_sample(
    sample: Sample, on_image: Callable[[np.ndarray], np.ndarray], on_labels: Callable[[np.ndarray], np.ndarray]
) -> Sample:
    """Returns the sample with one function applied to the image and another to the mask and all labels."""
    instances = None if sample.instances is None else on_labels(sample.instances)
    return Sample(on_image(sample.image), on_labels(sample.mask), instances, tuple(map(on_labels, sample.covered)))


def read_instances(pair: Pair, shape: tuple[int, ...]) -> np.ndarray:
    """Reads a pair's instance labels, int32 [h, w].

    Raises:
      DataError: if the file is bad, or of another size than the image.
    """
    if pair.instances_path is None:
        raise ValueError(f"read_instances: {pair.stem} has none")
    labels, _ = read_labels(pair.instances_path)
    if labels.shape != shape:
        raise DataError(
            f"{pair.instances_path}: is {labels.shape[1]}x{labels.shape[0]}, the image {shape[1]}x{shape[0]}"
        )
    return labels


def read_covered(pair: Pair, shape: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """Reads the label maps of a pair's partly covered nuclei, int32 [h, w] each; none where there is no file.

    Raises:
      DataError: if the file is bad, or of another size than the image.
    """
    if pair.covered_path is None:
        return ()
    layers = load_covered(pair.covered_path)
    if layers and layers[0].shape != shape:
        (height, width), given = layers[0].shape, pair.covered_path
        raise DataError(f"{given}: is {width}x{height}, the image {shape[1]}x{shape[0]}")
    return layers


def whole_truth(pair: Pair, shape: tuple[int, ...]) -> dict[int, Extent]:
    """Reads a pair's nuclei at full extent, by label; see `read_instances` and `read_covered`."""
    return extents_of(read_instances(pair, shape), read_covered(pair, shape))


def sample_loader(config: Config) -> Callable[[Pair], Sample]:
    """Returns the function that reads a pair as the recipe wants it; see `load_sample`."""
    return functools.partial(
        load_sample,
        image_size=config.model.image_size,
        mask_rule=config.data.mask_rule,
        bit_depth=config.data.bit_depth,
        with_instances=needs_instances(config.model.heads),
    )


class SampleCache:
    """Keeps what was loaded until a limit is reached; what comes later is loaded anew each time.

    It may be used by several threads at once. Samples from it cannot be written to.
    """

    def __init__(self, load: Callable[[Pair], Sample], *, max_bytes: float) -> None:
        """Starts empty.

        Args:
          load: reads a pair.
          max_bytes: of all arrays that are kept.
        """
        self._load = load
        self._free = max_bytes
        self._kept: dict[Pair, Sample] = {}
        self._lock = threading.Lock()

    def __call__(self, pair: Pair) -> Sample:
        """Returns the pair's sample, from memory where it is there."""
        kept = self._kept.get(pair)
        if kept is not None:
            return kept
        sample = self._load(pair)
        single = (sample.image, sample.mask, sample.instances, *sample.covered)
        arrays = [array for array in single if array is not None]
        size = sum(array.nbytes for array in arrays)
        with self._lock:
            if size <= self._free and pair not in self._kept:
                for array in arrays:
                    array.flags.writeable = False
                self._kept[pair] = sample
                self._free -= size
        return sample


def sample_cache(config: Config) -> SampleCache:
    """Returns `sample_loader` with a memory, for those who come back to the same pairs."""
    return SampleCache(sample_loader(config), max_bytes=config.data.cache_gib * 2**30)
