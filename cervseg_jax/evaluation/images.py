"""Predicts the images of a split and scores each against its truth."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cervseg_jax.annotations.decisions import Decisions, remaining_labels
from cervseg_jax.console import Reporter
from cervseg_jax.data.decode import read_image, read_mask
from cervseg_jax.data.pairs import Pair
from cervseg_jax.data.samples import read_instances
from cervseg_jax.evaluation.nuclei import NucleusScores, join_nucleus_scores, score_nuclei
from cervseg_jax.evaluation.pixels import PixelScores, join_pixel_scores, score_pixels
from cervseg_jax.files import make_folder, write_labels, write_png
from cervseg_jax.schema import Config
from cervseg_jax.segmentation.result import Result
from cervseg_jax.segmentation.segmenter import Segmenter

PREDICTIONS = ("masks", "probabilities", "instances")
"""Folders of the predictions, one file per image; probabilities times 255."""


class ImageScores(NamedTuple):
    """Scores of the images of a split, one row each."""

    pixels: PixelScores
    uncertainty: np.ndarray
    """Uncertainty of each prediction in bits; see `segmentation.uncertainty`."""
    nuclei: NucleusScores | None
    """Scores of the images that have instance labels."""
    has_instances: np.ndarray
    """Which images these are; bool [images]."""


def score_images(
    segmenter: Segmenter,
    pairs: Sequence[Pair],
    config: Config,
    reporter: Reporter,
    *,
    with_nuclei: bool = True,
    folder: Path | None = None,
    decisions: Decisions | None = None,
) -> ImageScores:
    """Predicts and scores images in their own size.

    Args:
      segmenter: makes masks and label maps.
      pairs: images and their truth.
      config: says how masks are read.
      reporter: for progress.
      with_nuclei: score nuclei where there are instance labels.
      folder: receives the predictions; None: they are not written.
      decisions: of a reviewing page; rejected nuclei are left out of the truth.
    """
    pixels: list[PixelScores] = []
    uncertainties: list[float] = []
    nuclei: list[NucleusScores] = []
    if folder:
        for name in PREDICTIONS:
            make_folder(folder / name)
    images = ((pair, read_image(pair.image_path, bit_depth=config.data.bit_depth)) for pair in pairs)
    with reporter.progress("scoring", len(pairs)) as advance:
        for pair, result in segmenter.predict(images, scratch=folder):
            mask, instances = _read_truth(pair, config, decisions, with_instances=with_nuclei)
            pixels.append(score_pixels(np.asarray(result.probabilities, np.float32), mask, predicted=result.mask))
            uncertainties.append(result.uncertainty)
            if instances is not None:
                nuclei.append(score_nuclei(instances, result.labels))
            if folder:
                _write_prediction(folder, pair.stem, result, with_labels=instances is not None)
            advance()
    return ImageScores(
        join_pixel_scores(pixels),
        np.array(uncertainties),
        join_nucleus_scores(nuclei) if nuclei else None,
        np.array([pair.instances_path is not None for pair in pairs]),
    )


def _read_truth(
    pair: Pair, config: Config, decisions: Decisions | None, *, with_instances: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns mask and instance labels of a pair, the latter where there are any, without rejected nuclei."""
    mask = read_mask(pair.mask_path, rule=config.data.mask_rule).mask
    instances = read_instances(pair, mask.shape) if pair.instances_path is not None else None
    decided = None if decisions is None else decisions.about(pair.image_path)
    points = [] if decided is None else decided.rejected()
    if points and instances is None:
        mask = remaining_labels(mask, points, has_instances=False)
    elif points and instances is not None:
        kept = remaining_labels(instances, points)
        mask, instances = np.where((instances > 0) & (kept == 0), np.uint8(0), mask), kept
    return mask, instances if with_instances else None


def _write_prediction(folder: Path, stem: str, result: Result, *, with_labels: bool) -> None:
    probs = np.asarray(result.probabilities, np.float32)
    write_png(folder / "masks" / f"{stem}.png", result.mask.astype(np.uint8) * 255)
    write_png(folder / "probabilities" / f"{stem}.png", np.rint(255 * probs).astype(np.uint8))
    if with_labels:
        write_labels(folder / "instances", stem, result.labels)
