"""Images with their truth, and their scores, for `benchmark_accuracy.py`.

Scores are those of an image as `eval` computes them: Dice of the mask, AJI and PQ of single nuclei. Where a set has no
labels, connected components of its masks count as nuclei, and AJI and PQ are lower bounds for touching ones.
"""

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from cervseg_jax.data.decode import read_image, read_mask
from cervseg_jax.data.label_files import read_labels
from cervseg_jax.data.resize import resize_image, resize_mask, scaled_size
from cervseg_jax.files import make_folder, sha256_of, write_png
from cervseg_jax.metrics.instance import aji, count_instances, join_counts, panoptic_quality
from cervseg_jax.plots import PREDICTION_COLOR, TRUTH_COLOR, draw_instance_outlines
from cervseg_jax.pretrained_weights import FOLDER
from cervseg_jax.tables import read_csv

METRICS = ("dice", "aji", "pq")


class Part(NamedTuple):
    """A square of an image, enlarged."""

    top: int
    left: int
    side: int
    """In the image's pixels."""
    factor: float

    @property
    def window(self) -> tuple[slice, slice]:
        """Its pixels."""
        return slice(self.top, self.top + self.side), slice(self.left, self.left + self.side)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width when enlarged."""
        side = round(self.side * self.factor)
        return side, side


class Item(NamedTuple):
    """An image with its truth."""

    path: Path
    truth_path: Path
    is_labelled: bool
    """Whether the truth is a label map, and no mask."""
    source: str
    part: Part | None = None
    """The part that is taken; None: all."""

    @property
    def stem(self) -> str:
        """Name of the image, or of its part."""
        return self.path.stem if self.part is None else f"{self.path.stem}_{self.part.top}_{self.part.left}"

    def image(self) -> np.ndarray:
        """Returns uint8 RGB [h, w, 3]."""
        image = read_image(self.path)
        if self.part is None:
            return image
        return resize_image(np.ascontiguousarray(image[self.part.window]), self.part.size)

    def labels(self) -> np.ndarray:
        """Returns the true labels, int32 [h, w]; connected components of a mask."""
        if self.is_labelled:
            labels = read_labels(self.truth_path)[0]
        else:
            mask = read_mask(self.truth_path, rule="half_range").mask
            labels = np.asarray(cv2.connectedComponents(mask, connectivity=4)[1], np.int32)
        return labels if self.part is None else resize_mask(labels[self.part.window], self.part.size)


def find_items(data: Path, name: str, *, limit: int | None = None, with_trained: bool = False) -> list[Item]:
    """Returns the images of a set, spread evenly where limited.

    Args:
      data: folder of the sets.
      name: of the set.
      limit: largest number of images.
      with_trained: include the images that the built-in weights were trained on.
    """
    rows = [] if with_trained else read_csv(FOLDER / "pap" / "data.csv", columns=("image_sha256",))
    trained = {row["image_sha256"] for row in rows}
    is_labelled = (data / name / "labels").is_dir()
    items = []
    for path in sorted((data / name / "images").iterdir()):
        if sha256_of(path.read_bytes()) in trained:
            continue
        (truth,) = (data / name / ("labels" if is_labelled else "masks")).glob(f"{path.stem}.*")
        items.append(Item(path, truth, is_labelled, path.stem.rsplit("_", 1)[-1]))
    return items if limit is None else items[:: max(1, len(items) // limit)][:limit]


def single_nuclei(items: Iterable[Item], *, seed: int = 0, per_image: int = 2) -> list[Item]:
    """Returns parts of images around single nuclei, as files of single cells show them: 25 to 70 pixels across.

    Args:
      items: whole images.
      seed: of the choice of nuclei, parts and sizes.
      per_image: largest number of parts of an image.
    """
    rng, parts = np.random.default_rng(seed), []
    for item in items:
        labels = item.labels()
        areas = np.bincount(labels.ravel())
        known = np.flatnonzero(areas[1:]) + 1
        usual = np.median(areas[known]) if len(known) else 0.0
        found = []
        for label in rng.permutation(known[areas[known] > 0.64 * usual]):
            if len(found) == per_image:
                break
            diameter = float(np.sqrt(4 * areas[label] / np.pi))
            side = round(rng.uniform(2.4, 5.0) * diameter)
            top, left = (round(float(place.mean()) - side / 2) for place in np.nonzero(labels == label))
            is_inside = min(top, left) >= 0 and top + side <= labels.shape[0] and left + side <= labels.shape[1]
            if is_inside:
                found.append(item._replace(part=Part(top, left, side, rng.uniform(25, 70) / diameter)))
        parts += found
    return parts


def score(item: Item, labels: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """Compares predicted with true labels of an image; NaN where a score is not defined."""
    found, real = labels > 0, truth > 0
    total = int(found.sum() + real.sum())
    counts = join_counts([count_instances(truth, labels)])
    return {
        "set": item.path.parent.parent.name,
        "stem": item.stem,
        "source": item.source,
        "dice": 2 * int((found & real).sum()) / total if total else float("nan"),
        "aji": float(aji(counts)[0]),
        "pq": float(panoptic_quality(counts)[0]),
    }


def rescaled(item: Item, factor: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns image and true labels at another size."""
    image, labels = item.image(), item.labels()
    if factor == 1:
        return image, labels
    size = scaled_size(labels.shape, factor)
    return resize_image(image, size), resize_mask(labels, size)


def classical(image: np.ndarray) -> np.ndarray:
    """Returns labels by Otsu's threshold of haematoxylin and a watershed of the distance transform."""
    from skimage import color, feature, filters, measure, morphology, segmentation

    stain = filters.gaussian(color.rgb2hed(image)[..., 0], 1.0)
    mask = morphology.remove_small_objects(stain > filters.threshold_otsu(stain), max_size=29)
    distance = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    peaks = feature.peak_local_max(distance, min_distance=4, labels=measure.label(mask))
    markers = np.zeros(mask.shape, np.int32)
    markers[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    return np.asarray(segmentation.watershed(-distance, markers, mask=mask), np.int32)


def overlay(path: Path, image: np.ndarray, labels: np.ndarray, truth: np.ndarray) -> None:
    """Writes the image with outlines of the truth (green) and of the prediction (magenta)."""
    picture = draw_instance_outlines(image, truth, color=TRUTH_COLOR)
    write_png(path, draw_instance_outlines(picture, labels, color=PREDICTION_COLOR))


def score_items(
    items: Iterable[Item], segment: Callable[[np.ndarray], np.ndarray], pictures: Path, *, factor: float = 1.0
) -> dict[str, Any]:
    """Segments and scores images, and writes overlays.

    Args:
      items: the images.
      segment: from uint8 RGB [h, w, 3] to int32 labels [h, w].
      pictures: folder for the overlays.
      factor: of the images' size.

    Returns:
      "images", one row of scores each, and "seconds_per_image".
    """
    rows, start = [], time.perf_counter()
    for item in items:
        image, truth = rescaled(item, factor)
        labels = segment(image)
        rows.append(score(item, labels, truth))
        overlay(make_folder(pictures) / f"{item.stem}.png", image, labels, truth)
    return {"images": rows, "seconds_per_image": (time.perf_counter() - start) / max(1, len(rows))}
