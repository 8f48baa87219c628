"""Predicts the images of a split and scores each against its truth."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cervseg_jax.console import Reporter
from cervseg_jax.data.decode import read_image, read_mask
from cervseg_jax.data.pairs import Pair
from cervseg_jax.data.samples import read_instances, whole_truth
from cervseg_jax.evaluation.nuclei import NucleusScores, WholeScores, join_nucleus_scores, score_nuclei, score_whole
from cervseg_jax.evaluation.pixels import PixelScores, join_pixel_scores, score_pixels
from cervseg_jax.files import make_folder, write_labels, write_png
from cervseg_jax.schema import Config
from cervseg_jax.segmentation.calibration import Judged, join_judged
from cervseg_jax.segmentation.result import Result
from cervseg_jax.segmentation.segmenter import Segmenter
from cervseg_jax.segmentation.tuning import judge_result

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
    judged: Judged | None = None
    """All their nuclei, for weights with a confidence."""
    probabilities: np.ndarray | None = None
    """Probability of each of these nuclei."""


def score_images(
    segmenter: Segmenter,
    pairs: Sequence[Pair],
    config: Config,
    reporter: Reporter,
    *,
    with_nuclei: bool = True,
    folder: Path | None = None,
) -> ImageScores:
    """Predicts and scores images in their own size.

    Args:
      segmenter: makes masks and label maps.
      pairs: images and their truth.
      config: says how masks are read.
      reporter: for progress.
      with_nuclei: score nuclei where there are instance labels.
      folder: receives the predictions; None: they are not written.
    """
    pixels: list[PixelScores] = []
    uncertainties: list[float] = []
    nuclei: list[NucleusScores] = []
    judged: list[Judged] = []
    probs: list[np.ndarray] = [np.zeros(0)]
    if folder:
        for name in PREDICTIONS:
            make_folder(folder / name)
    knows_more = "rays" in segmenter.predictor.heads or any(pair.covered_path for pair in pairs)
    images = ((pair, read_image(pair.image_path, bit_depth=config.data.bit_depth)) for pair in pairs)
    with reporter.progress("scoring", len(pairs)) as advance:
        for pair, result in segmenter.predict(images, scratch=folder):
            mask = read_mask(pair.mask_path, rule=config.data.mask_rule).mask
            pixels.append(score_pixels(np.asarray(result.probabilities, np.float32), mask, predicted=result.mask))
            uncertainties.append(result.uncertainty)
            has_instances = with_nuclei and pair.instances_path is not None
            if has_instances:
                if knows_more or segmenter.confidence is not None:
                    _ = result.nuclei  # before `labels`, which would compute them a second time
                scores = score_nuclei(read_instances(pair, mask.shape), result.labels)
                nuclei.append(scores._replace(whole=_whole_scores(pair, result)) if knows_more else scores)
                if segmenter.confidence is not None:
                    judged.append(judge_result(result, pair))
                    probs.append(result.nuclei.table["probability"])
            if folder:
                _write_prediction(folder, pair.stem, result, with_labels=has_instances)
            advance()
    return ImageScores(
        join_pixel_scores(pixels),
        np.array(uncertainties),
        join_nucleus_scores(nuclei) if nuclei else None,
        np.array([pair.instances_path is not None for pair in pairs]),
        join_judged(judged) if judged else None,
        np.concatenate(probs) if judged else None,
    )


def _whole_scores(pair: Pair, result: Result) -> WholeScores:
    truth = list(whole_truth(pair, result.maps.shape[:2]).values())
    return score_whole(truth, result.extents)


def _write_prediction(folder: Path, stem: str, result: Result, *, with_labels: bool) -> None:
    probs = np.asarray(result.probabilities, np.float32)
    write_png(folder / "masks" / f"{stem}.png", result.mask.astype(np.uint8) * 255)
    write_png(folder / "probabilities" / f"{stem}.png", np.rint(255 * probs).astype(np.uint8))
    if with_labels:
        write_labels(folder / "instances", stem, result.labels)
