"""Predicts the images of a split and scores each against its truth."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import jax
import numpy as np

from cervseg_jax.annotations.decisions import Decisions, remaining_labels
from cervseg_jax.console import Reporter
from cervseg_jax.data.decode import read_image, read_mask
from cervseg_jax.data.pairs import Pair
from cervseg_jax.data.samples import read_instances
from cervseg_jax.evaluation.nuclei import NucleusScores, join_nucleus_scores, score_nuclei
from cervseg_jax.evaluation.pixels import PixelScores, join_pixel_scores, score_pixels
from cervseg_jax.files import make_folder, write_labels, write_png
from cervseg_jax.runtime.distributed import allgather_rows, share_of, sync_errors
from cervseg_jax.schema import Config
from cervseg_jax.segmentation.result import Result
from cervseg_jax.segmentation.segmenter import Segmenter

PREDICTIONS = ("masks", "probabilities", "instances")
"""Folders of the predictions, one file per image; probabilities times 255."""


Scores = TypeVar("Scores")


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
    """Predicts and scores images in their own size. Collective: each process does its share, and gets all scores.

    Args:
      segmenter: makes masks and label maps.
      pairs: images and their truth.
      config: says how masks are read.
      reporter: for progress.
      with_nuclei: score nuclei where there are instance labels.
      folder: receives the predictions; None: they are not written.
      decisions: of a reviewing page; rejected nuclei are left out of the truth.
    """
    with sync_errors():
        indices, pixels, uncertainties, nuclei = _score_share(
            segmenter, pairs, config, reporter, with_nuclei=with_nuclei, folder=folder, decisions=decisions
        )
    has_instances = np.array([pair.instances_path is not None for pair in pairs])
    all_pixels, uncertainty = allgather_rows(indices, (pixels, uncertainties))
    all_nuclei = None
    if with_nuclei and has_instances.any():
        all_nuclei = allgather_rows([index for index in indices if has_instances[index]], nuclei)
    return ImageScores(all_pixels, uncertainty, all_nuclei, has_instances)


def _score_share(
    segmenter: Segmenter,
    pairs: Sequence[Pair],
    config: Config,
    reporter: Reporter,
    *,
    with_nuclei: bool,
    folder: Path | None,
    decisions: Decisions | None,
) -> tuple[Sequence[int], PixelScores, np.ndarray, NucleusScores]:
    """Returns which images this process has scored, and their scores; those of nuclei where there are labels."""
    own = share_of(len(pairs))
    nothing = np.zeros((1, 1))
    pixels = [_no_rows(score_pixels(nothing, nothing.astype(np.uint8), predicted=nothing > 0))]
    nuclei = [_no_rows(score_nuclei(nothing.astype(np.int32), nothing.astype(np.int32)))]
    uncertainties: list[float] = []
    if folder:
        for name in PREDICTIONS:
            make_folder(folder / name)
    images = ((pairs[index], read_image(pairs[index].image_path, bit_depth=config.data.bit_depth)) for index in own)
    with reporter.progress("scoring", len(own)) as advance:
        for pair, result in segmenter.predict(images, scratch=folder):
            mask, instances = _read_truth(pair, config, decisions, with_instances=with_nuclei)
            pixels.append(score_pixels(np.asarray(result.probabilities, np.float32), mask, predicted=result.mask))
            uncertainties.append(result.uncertainty)
            if instances is not None:
                nuclei.append(score_nuclei(instances, result.labels))
            if folder:
                _write_prediction(folder, pair.stem, result, with_labels=instances is not None)
            advance()
    return own, join_pixel_scores(pixels), np.array(uncertainties, np.float64), join_nucleus_scores(nuclei)


def _no_rows(scores: Scores) -> Scores:
    """Returns the scores of no images, so that a process without images has some to share."""
    return jax.tree.map(lambda values: values[:0], scores)


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
