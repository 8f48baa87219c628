"""The dataset recipe of the reference implementation, defects included, for comparison.

Outlines are filled with `fillPoly`; padded and resized images and masks are saved as JPEG. Each source becomes 20
variants, and the variants, not the sources, are split afterwards. The distortions of image and mask do not match.
Scores on such a dataset say nothing about unseen images; `audit` shows why.
"""

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

from cervseg_jax.curation.collect import SourceImage, collect
from cervseg_jax.curation.reference_style import offline_variants
from cervseg_jax.curation.truth import read_truth
from cervseg_jax.data.decode import read_image
from cervseg_jax.data.manifest import DATASET_FILE
from cervseg_jax.errors import DataError, first_few
from cervseg_jax.files import make_folder, refuse_filled_folder, write_bytes, write_json
from cervseg_jax.runtime.threads import map_files
from cervseg_jax.storage.address import as_path

SIZE = 512
SPLIT_SEED, TRAIN_SHARE, VALID_SHARE = 137, 0.8, 0.15
FIRST_NUMBER = 10001


def build_reference_dataset(
    source: Path, out: Path, *, seed: int, on_progress: Callable[[], None] = lambda: None
) -> dict[str, int]:
    """Makes the 20 variants of each source and splits them.

    Args:
      source: annotated images, see `collect`.
      out: a new folder.
      seed: seed of the distortions; the reference has none.
      on_progress: called after each source.

    Returns:
      Number of images by split.

    Raises:
      ConfigError: if `out` exists, or the layout of `source` is not supported.
      DataError: if a file is bad.
    """
    refuse_filled_folder(out, shown=f"--out: {out}")
    source = as_path(source).absolute()
    items = collect(source).images

    def write_variants(number: int) -> list[str]:
        pictures = _pictures(items[number - FIRST_NUMBER])
        streams = np.random.default_rng([seed, number]).spawn(2)  # image and mask are distorted differently
        made = [
            offline_variants(picture, is_mask=is_mask, random=stream)
            for picture, is_mask, stream in zip(pictures, (False, True), streams, strict=True)
        ]
        names = []
        for (prefix, image), (_, mask) in zip(*made, strict=True):
            names.append(f"{prefix}{number}.jpg")
            _write_jpeg(out / "all" / "images" / names[-1], image)
            _write_jpeg(out / "all" / "masks" / names[-1], mask)
        return names

    for name in ("images", "masks"):
        make_folder(out / "all" / name)
    numbers = range(FIRST_NUMBER, FIRST_NUMBER + len(items))
    names = sorted(name for several in map_files(write_variants, numbers, on_progress=on_progress) for name in several)
    counts = _divide(out, names)
    write_json(out / DATASET_FILE, {"kind": "reference_style", "source": str(source), "seed": seed})
    return counts


def _pictures(item: SourceImage) -> tuple[np.ndarray, np.ndarray]:
    """Returns image (BGR) and mask (0 or 255) as squares of 512 pixels."""
    image = read_image(item.image_path)[:, :, ::-1]
    height, width = image.shape[:2]
    truth = read_truth(item, mask_rule="half_range")
    if truth.problems:
        raise DataError(first_few(truth.problems, "\n  "))
    mask = np.zeros((height, width), np.uint8)
    if truth.labels is not None:
        mask[truth.labels > 0] = 255
    for nucleus in truth.nuclei or []:
        for ring in nucleus.rings:
            cv2.fillPoly(mask, [ring.astype(np.int32)], 255)
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    squares = []
    for picture, color in ((image, image[2, 2]), (mask, 0)):
        canvas = np.empty((side, side, *picture.shape[2:]), np.uint8)
        canvas[:] = color
        canvas[top : top + height, left : left + width] = picture
        squares.append(cv2.resize(canvas, (SIZE, SIZE)))
    return squares[0], squares[1]


def _divide(out: Path, names: Sequence[str]) -> dict[str, int]:
    """Moves the files into train, valid and test by the reference's shuffle."""
    shuffled = list(names)
    random.Random(SPLIT_SEED).shuffle(shuffled)  # noqa: S311 (its generator)
    first, second = int(TRAIN_SHARE * len(names)), int(TRAIN_SHARE * len(names)) + int(VALID_SHARE * len(names))
    parts = {"train": shuffled[:first], "valid": shuffled[first:second], "test": shuffled[second:]}
    for split, members in parts.items():
        for kind in ("images", "masks"):
            folder = make_folder(out / split / kind)
            for name in members:
                (out / "all" / kind / name).rename(folder / name)
    for kind in ("images", "masks"):
        (out / "all" / kind).rmdir()
    (out / "all").rmdir()
    return {split: len(members) for split, members in parts.items()}


def _write_jpeg(path: Path, picture: np.ndarray) -> None:
    colors = picture if picture.ndim == 3 else cv2.cvtColor(picture, cv2.COLOR_GRAY2BGR)
    _, packed = cv2.imencode(".jpg", np.ascontiguousarray(colors))
    write_bytes(path, packed.tobytes(), durable=False)
