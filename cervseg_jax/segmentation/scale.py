"""The scale at which an image is predicted: by what is known of it, or by the nuclei that the network finds.

A network that was trained at one scale (`Contract.scale`) recognizes nuclei of about that size. The image is predicted
in tiles that hold nuclei of this size, and the probabilities are resized back to the image.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, UInt8

from cervseg_jax.data.resize import border_color, resize_image, scaled_size
from cervseg_jax.engine.predict import Predict
from cervseg_jax.schema import DEFAULT_THRESHOLD, PostprocessingConfig, Scale
from cervseg_jax.segmentation.images import ImageLike
from cervseg_jax.segmentation.instances import label_instances
from cervseg_jax.segmentation.postprocess import make_mask
from cervseg_jax.segmentation.predict import Predictor, predict_ahead
from cervseg_jax.typing import typechecked


class ImageScale(NamedTuple):
    """The size of nuclei that was taken for an image."""

    nucleus_px: float
    """Median diameter in the image's own pixels."""
    source: str
    """"given", "pixel size", "estimated", or "default" if no nucleus was found."""
    factor: float
    """Factor of the image's size at which the network sees it."""


MIN_FACTOR, MAX_FACTOR = 1 / 16, 16.0


def image_scale(nucleus_px: float, source: str, network_px: float) -> ImageScale:
    """Returns the scale of an image from the diameters of nuclei in it and at the network's input."""
    return ImageScale(nucleus_px, source, min(MAX_FACTOR, max(MIN_FACTOR, network_px / nucleus_px)))


FLAT_LEVELS = 8
"""Largest difference of gray levels within an area of one color; compression leaves so much."""


@typechecked
def flat_areas(image: UInt8[np.ndarray, "h w 3"], size_px: float) -> Bool[np.ndarray, "h w"]:
    """Returns areas of one color that are larger than a nucleus: bars and corners around the picture, empty slide.

    Areas within the image may be the inside of nuclei that are dark and larger than assumed.

    Args:
      image: RGB; an image or a tile of it.
      size_px: side of the square that must have one color.

    Returns:
      True for the pixels of such squares, in areas that reach the border of the image.
    """
    side = 2 * max(1, round(size_px) // 2) + 1
    kernel = np.ones((side, side), np.uint8)
    spread = cv2.dilate(image, kernel) - cv2.erode(image, kernel)
    flat = cv2.inRange(spread, (0, 0, 0), (FLAT_LEVELS, FLAT_LEVELS, FLAT_LEVELS))
    labels = np.asarray(cv2.connectedComponents(cv2.dilate(flat, kernel), connectivity=4)[1], np.int32)
    reaches_border = np.zeros(labels.max() + 1, bool)
    for border in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        reaches_border[border] = True
    reaches_border[0] = False
    return np.asarray(reaches_border[labels])


def without_flat_areas(predict: Predict, nucleus_px: float) -> Predict:
    """Returns a prediction whose mask is 0 in flat areas, which a network that saw few of them may take for nuclei.

    Args:
      predict: from images [b, h, w, 3] to probabilities, with the mask first.
      nucleus_px: diameter of nuclei at the network's input.
    """

    def masked(images: np.ndarray) -> np.ndarray:
        maps = np.array(predict(images))
        for image, probs in zip(images, maps, strict=True):
            probs[..., 0][flat_areas(image, nucleus_px)] = 0.0
        return maps

    return masked


CANDIDATES_PX = tuple(float(size) for size in np.geomspace(6.0, 120.0, 8).round(1))
"""Diameters that are tried first."""
MAX_WINDOWS = 3
"""Windows per candidate."""
SIZE_TOLERANCE = 0.35
"""Standard deviation of the logarithm of sizes that a network recognizes well."""
MIN_VOTES = 0.5
"""Weight below which nothing was found."""
PART_RATIO, PART_SHARE = 2.0, 0.75
"""A vote may be for a part of a nucleus, such as a granule of chromatin, if it lies in a vote that is so many times as
large and has at least this share of its weight."""
MIN_PARTS, MIN_PART_WEIGHT = 3, 0.05
"""Votes of this weight, apart from each other, that a larger one must have in it: nuclei have many granules, but cells
one nucleus."""


class _Votes(NamedTuple):
    """Nuclei that were found at several scales, float64 [n] each."""

    sizes: np.ndarray
    """Diameters in the image's pixels."""
    weights: np.ndarray
    rows: np.ndarray
    """Centers in the image's pixels."""
    columns: np.ndarray


class _Tile(NamedTuple):
    """Where a window of the image was taken."""

    factor: float
    """Of the image's size."""
    top: int
    left: int


def estimate_nucleus_px(predictor: Predictor, image: ImageLike, scale: Scale) -> float | None:
    """Estimates the median diameter of nuclei from predictions at several scales.

    At each scale every nucleus that is found votes for its diameter in the image, with more weight the surer it is and
    the closer its size at the network's input is to the size that the network was trained on; parts of larger nuclei
    do not vote. The estimate is the densest place of the votes, refined by the nuclei found at that scale. Nuclei are
    told apart by the default parameters: tuned ones are the best for images at the scale that was estimated here.

    Args:
      predictor: the network.
      image: an image or a slide.
      scale: scale of the network's input.

    Returns:
      The diameter in the image's pixels, or None if no nuclei were found.
    """
    content = _Content(image)
    first = _densest(_without_parts(_votes(predictor, image, CANDIDATES_PX, scale, content)))
    if first is None:
        return None
    refined = _densest(_votes(predictor, image, [first], scale, content))
    return first if refined is None else math.sqrt(first * refined)


def _votes(
    predictor: Predictor,
    image: ImageLike,
    sizes_px: Sequence[float],
    scale: Scale,
    content: "_Content",
) -> _Votes:
    """Returns the nuclei found if nuclei had some size.

    Args:
      predictor: the network.
      image: the image.
      sizes_px: the sizes that are tried.
      scale: scale of the network's input.
      content: where to look.
    """

    def tiles() -> Iterator[tuple[_Tile, np.ndarray]]:
        for size_px in sizes_px:
            factor = scale.nucleus_px / size_px
            height, width = (max(1, round(length / factor)) for length in predictor.image_size)
            for window in content.windows((height, width), MAX_WINDOWS):
                place = _Tile(factor, window[0].start, window[1].start)
                yield place, _fitted(np.asarray(image[window]), factor, predictor.image_size)

    def batches() -> Iterator[tuple[list[_Tile], np.ndarray]]:
        rest = tiles()
        while batch := list(itertools.islice(rest, predictor.batch_size)):
            yield [place for place, _ in batch], np.stack([tile for _, tile in batch])

    found = [np.zeros((4, 0))]
    for places, maps_of_tiles in predict_ahead(predictor, batches()):
        for place, maps in zip(places, maps_of_tiles, strict=True):
            mask = make_mask(maps[..., 0], DEFAULT_THRESHOLD)
            labels = label_instances(maps, mask, predictor.heads, PostprocessingConfig())
            sizes, certainty, rows, columns = _nuclei(labels, maps[..., 0])
            weights = certainty * np.exp(-0.5 * (np.log(sizes / scale.nucleus_px) / SIZE_TOLERANCE) ** 2)
            rows, columns = place.top + rows / place.factor, place.left + columns / place.factor
            found.append(np.stack([sizes / place.factor, weights, rows, columns]))
    return _Votes(*np.concatenate(found, axis=1))


def _nuclei(labels: np.ndarray, probs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns diameter, certainty, and row and column of the center of each nucleus that does not touch the border."""
    count = int(labels.max(initial=0))
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    rows, columns, means = (
        np.bincount(labels.ravel(), np.broadcast_to(values, labels.shape).ravel(), minlength=count + 1)[1:]
        / np.maximum(areas, 1)
        for values in (*np.ogrid[: labels.shape[0], : labels.shape[1]], probs)
    )
    is_cut = np.zeros(count + 1, bool)
    for border in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        is_cut[border] = True
    whole = ~is_cut[1:]
    certainty = np.clip(2 * means[whole] - 1, 0, 1) ** 2
    return np.sqrt(4 * areas[whole] / math.pi), certainty, rows[whole], columns[whole]


def _without_parts(votes: _Votes) -> _Votes:
    """Returns the votes that are not parts of larger ones, see `PART_RATIO` and `MIN_PARTS`."""
    is_part = np.zeros(len(votes.sizes), bool)
    for size, weight, row, column in zip(*votes, strict=True):
        is_inside = (np.hypot(votes.rows - row, votes.columns - column) < size / 2) & (PART_RATIO * votes.sizes < size)
        if _num_apart(votes, np.flatnonzero(is_inside)) >= MIN_PARTS:
            is_part |= is_inside & (PART_SHARE * votes.weights < weight)
    return _Votes(*(values[~is_part] for values in votes))


def _num_apart(votes: _Votes, indices: np.ndarray) -> int:
    """Counts votes that do not lie on each other, the surest first; the same place votes at several scales."""
    sizes, weights, rows, columns = (values[indices] for values in votes)
    is_left, count = weights > MIN_PART_WEIGHT, 0
    for index in np.argsort(-weights, kind="stable"):
        if is_left[index]:
            distances = np.hypot(rows - rows[index], columns - columns[index])
            is_left &= distances > np.maximum(sizes, sizes[index])
            count += 1
    return count


def _densest(votes: _Votes) -> float | None:
    """Returns the weighted median of the votes around their densest place; None where there are too few.

    Votes count by their diameter, as a field has room for few large nuclei beside many specks, and the sure ones more.
    """
    if votes.weights.sum() < MIN_VOTES:
        return None
    sizes, weights = votes.sizes, votes.weights**2 * votes.sizes
    logs = np.log(sizes)
    grid = np.linspace(logs.min(), logs.max(), 200)
    density = (weights * np.exp(-0.5 * ((grid[:, None] - logs) / 0.2) ** 2)).sum(axis=1)
    near = np.abs(logs - grid[density.argmax()]) < 0.5
    order = np.argsort(logs[near])
    cumulated = np.cumsum(weights[near][order])
    return float(np.exp(logs[near][order][np.searchsorted(cumulated, cumulated[-1] / 2)]))


def _fitted(window: np.ndarray, factor: float, size: tuple[int, int]) -> np.ndarray:
    """Scales a window of the image and pads it to the network's size; mirrored nuclei would vote twice."""
    height, width = (min(a, b) for a, b in zip(scaled_size(window.shape, factor), size, strict=True))
    tile = resize_image(window, (height, width))
    below, right = size[0] - height, size[1] - width
    padded = cv2.copyMakeBorder(tile, 0, below, 0, right, cv2.BORDER_CONSTANT, value=border_color(tile))
    return np.asarray(padded)


class _Content:
    """Where an image has structure, on a coarse grid: empty places tell nothing about its scale."""

    MAX_SIDE = 256
    FLAT_PX = 7.0
    SLIDE_PIXELS, SLIDE_SIDE = 50_000_000, 48

    def __init__(self, image: ImageLike) -> None:
        self._shape = image.shape[:2]
        is_slide = self._shape[0] * self._shape[1] > self.SLIDE_PIXELS
        step = max(1, math.ceil(max(self._shape) / (self.SLIDE_SIDE if is_slide else self.MAX_SIDE)))
        rows, columns = (range(0, length, step) for length in self._shape)
        if is_slide:  # single pixels on a grid: reading a slide takes as long as predicting it
            small = np.array([[image[row : row + 1, column : column + 1][0, 0] for column in columns] for row in rows])
        else:
            small = np.ascontiguousarray(image[0 : self._shape[0], 0 : self._shape[1]][::step, ::step])
        brightness = small.astype(np.float32).mean(axis=2)
        darkness = np.clip(np.percentile(brightness, 90) - brightness, 0, None)
        darkness[flat_areas(small, self.FLAT_PX)] = 0  # corners and bars around the picture
        self._darkness, self._step = darkness, step

    def windows(self, side: tuple[int, int], count: int) -> list[tuple[slice, slice]]:
        """Returns up to `count` windows that overlap little, the darkest first."""
        height, width = (min(a, b) for a, b in zip(side, self._shape, strict=True))
        darkness, windows = self._darkness.copy(), []
        rows, columns = (max(1, round(length / self._step)) for length in (height, width))
        for _ in range(count):
            sums = cv2.integral(darkness)
            boxes = sums[rows:, columns:] - sums[:-rows, columns:] - sums[rows:, :-columns] + sums[:-rows, :-columns]
            if boxes.size == 0 or boxes.max() <= 0:
                break
            top, left = np.unravel_index(boxes.argmax(), boxes.shape)
            darkness[top : top + rows, left : left + columns] = 0
            y = min(int(top) * self._step, self._shape[0] - height)
            x = min(int(left) * self._step, self._shape[1] - width)
            windows.append((slice(y, y + height), slice(x, x + width)))
        return windows or [(slice(0, height), slice(0, width))]
