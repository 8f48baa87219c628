"""Predicts the images of a split and scores each against its truth."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import jax
import numpy as np

from cervseg_jax.annotations.decisions import Decisions, remaining_labels
from cervseg_jax.console import Reporter
from cervseg_jax.data.decode import read_image, read_mask
from cervseg_jax.data.pairs import Pair
from cervseg_jax.data.samples import read_instances, whole_truth
from cervseg_jax.evaluation.nuclei import NucleusScores, join_nucleus_scores, score_nuclei, score_whole
from cervseg_jax.evaluation.pixels import PixelScores, join_pixel_scores, score_pixels
from cervseg_jax.evaluation.unfinished import ImageScore, UnfinishedScores
from cervseg_jax.extents import Extent
from cervseg_jax.files import make_folder, write_labels, write_png
from cervseg_jax.runtime.distributed import allgather_rows, share_of, sync_errors
from cervseg_jax.schema import Config
from cervseg_jax.segmentation.calibration import Judged, gather_judged, join_judged
from cervseg_jax.segmentation.result import Result
from cervseg_jax.segmentation.segmenter import Segmenter
from cervseg_jax.segmentation.tuning import judge_result

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
    key: str = "",
    decisions: Decisions | None = None,
) -> ImageScores:
    """Predicts and scores images in their own size. Collective: each process does its share, and gets all scores.

    Args:
      segmenter: makes masks and label maps.
      pairs: images and their truth.
      config: says how masks are read.
      reporter: for progress.
      with_nuclei: score nuclei where there are instance labels.
      folder: receives the predictions, and the scores of each image until `UnfinishedScores.remove`; None: nothing is
        written.
      key: what the scores depend on besides the files; stored scores of another key are not used.
      decisions: of a reviewing page; rejected nuclei are left out of the truth.
    """
    own = share_of(len(pairs))
    with sync_errors():
        scored = _score_share(
            segmenter,
            pairs,
            own,
            config,
            reporter,
            with_nuclei=with_nuclei,
            folder=folder,
            key=key,
            decisions=decisions,
        )
    has_instances = np.array([pair.instances_path is not None for pair in pairs])
    pixels, uncertainty = allgather_rows(own, (scored.pixels, scored.uncertainty))
    if not with_nuclei or not has_instances.any():
        return ImageScores(pixels, uncertainty, None, has_instances)
    labelled = [index for index in own if has_instances[index]]
    nuclei = allgather_rows(labelled, scored.nuclei)
    if segmenter.confidence is None:
        return ImageScores(pixels, uncertainty, nuclei, has_instances)
    counts = [len(part.is_matched) for part in scored.judged]
    probs = allgather_rows(np.repeat(np.array(labelled, np.int64), counts).tolist(), scored.probabilities)
    return ImageScores(pixels, uncertainty, nuclei, has_instances, gather_judged(scored.judged, labelled), probs)


class _Scored(NamedTuple):
    """Scores of the images of this process."""

    pixels: PixelScores
    uncertainty: np.ndarray
    nuclei: NucleusScores
    """Of images with instance labels."""
    judged: list[Judged]
    """Likewise, for weights with a confidence."""
    probabilities: np.ndarray
    """Of all their nuclei."""


def _score_share(
    segmenter: Segmenter,
    pairs: Sequence[Pair],
    own: Sequence[int],
    config: Config,
    reporter: Reporter,
    *,
    with_nuclei: bool,
    folder: Path | None,
    key: str,
    decisions: Decisions | None,
) -> _Scored:
    """Scores the images of this process, without those that an earlier call has scored."""
    knows_more = "rays" in segmenter.predictor.heads or any(pair.covered_path for pair in pairs)
    unfinished = None if folder is None else UnfinishedScores(folder, key)
    if folder:
        for name in PREDICTIONS:
            make_folder(folder / name)
    scores: dict[int, ImageScore] = {}
    templates = [_no_score(segmenter, with_nuclei=known, with_whole=knows_more) for known in (False, True)]

    def template(pair: Pair) -> ImageScore:
        return templates[with_nuclei and pair.instances_path is not None]

    for index in own if unfinished else ():
        stored = unfinished.load(pairs[index], template(pairs[index])) if unfinished else None
        if stored is not None:
            scores[index] = stored
    if scores:
        reporter.info(f"going on with an evaluation that was cut off: {len(scores)} of {len(own)} images are scored")
    left = [index for index in own if index not in scores]

    def images() -> Iterator[tuple[int, np.ndarray]]:
        for index in left:
            if unfinished:
                unfinished.begin(pairs[index], template(pairs[index]))
            yield index, read_image(pairs[index].image_path, bit_depth=config.data.bit_depth)

    with reporter.progress("scoring", len(own), done=len(scores)) as advance:
        for index, result in segmenter.predict(images(), scratch=folder):
            pair = pairs[index]
            truth = _read_truth(pair, config, decisions, with_instances=with_nuclei)
            scores[index] = _score_image(segmenter, pair, result, *truth, knows_more=knows_more)
            if folder:
                _write_prediction(folder, pair.stem, result, with_labels=truth[1] is not None)
            if unfinished:
                unfinished.save(pair, scores[index])
            advance()
    return _joined([scores[index] for index in own], with_whole=knows_more)


def _score_image(
    segmenter: Segmenter,
    pair: Pair,
    result: Result,
    mask: np.ndarray,
    instances: np.ndarray | None,
    rejected: set[int],
    *,
    knows_more: bool,
) -> ImageScore:
    """Scores one image against its truth, as `_read_truth` returns it.

    Args:
      segmenter: that made the result.
      pair: the image.
      result: its prediction.
      mask: true mask.
      instances: true label map; None if there is none.
      rejected: its labels that are left out.
      knows_more: whether truth or prediction knows nuclei at full extent.
    """
    pixels = score_pixels(np.asarray(result.probabilities, np.float32), mask, predicted=result.mask)
    score = ImageScore(pixels, np.array([result.uncertainty], np.float64), np.zeros(0))
    if instances is None:
        return score
    truth: list[Extent] = []
    if knows_more or segmenter.confidence is not None:
        _ = result.nuclei  # before `labels`, which would compute them a second time
        truth = [extent for label, extent in whole_truth(pair, mask.shape).items() if label not in rejected]
    nuclei = score_nuclei(instances, result.labels)
    if knows_more:
        nuclei = nuclei._replace(whole=score_whole(truth, result.extents))
    if segmenter.confidence is None:
        return score._replace(nuclei=nuclei)
    probs = result.nuclei.table["probability"]
    return score._replace(nuclei=nuclei, judged=judge_result(result, truth), probabilities=probs)


def _joined(scores: Sequence[ImageScore], *, with_whole: bool) -> _Scored:
    """Joins the scores of images in their order."""
    return _Scored(
        join_pixel_scores([_no_pixels(), *(score.pixels for score in scores)]),
        np.concatenate([np.zeros(0), *(score.uncertainty for score in scores)]),
        join_nucleus_scores(
            [_no_nuclei(with_whole=with_whole), *(score.nuclei for score in scores if score.nuclei is not None)]
        ),
        [score.judged for score in scores if score.judged is not None],
        np.concatenate([np.zeros(0), *(score.probabilities for score in scores)]),
    )


def _no_score(segmenter: Segmenter, *, with_nuclei: bool, with_whole: bool) -> ImageScore:
    """Returns scores of the structure that those of an image have."""
    score = ImageScore(_no_pixels(), np.zeros(0), np.zeros(0))
    if not with_nuclei:
        return score
    score = score._replace(nuclei=_no_nuclei(with_whole=with_whole))
    return score if segmenter.confidence is None else score._replace(judged=join_judged([]))


def _no_pixels() -> PixelScores:
    """Returns the scores of no images, so that a process without images has some to share."""
    nothing = np.zeros((1, 1))
    return _no_rows(score_pixels(nothing, nothing.astype(np.uint8), predicted=nothing > 0))


def _no_nuclei(*, with_whole: bool) -> NucleusScores:
    nothing = np.zeros((1, 1), np.int32)
    scores = score_nuclei(nothing, nothing)
    return _no_rows(scores._replace(whole=score_whole([], [])) if with_whole else scores)


def _no_rows(scores: Scores) -> Scores:
    return jax.tree.map(lambda values: values[:0], scores)


def _read_truth(
    pair: Pair, config: Config, decisions: Decisions | None, *, with_instances: bool
) -> tuple[np.ndarray, np.ndarray | None, set[int]]:
    """Returns mask and instance labels, where there are any, without rejected nuclei, and the labels of these."""
    mask = read_mask(pair.mask_path, rule=config.data.mask_rule).mask
    instances = read_instances(pair, mask.shape) if pair.instances_path is not None else None
    decided = None if decisions is None else decisions.about(pair.image_path)
    points = [] if decided is None else decided.rejected()
    rejected: set[int] = set()
    if points and instances is None:
        mask = remaining_labels(mask, points, has_instances=False)
    elif points and instances is not None:
        kept = remaining_labels(instances, points)
        is_rejected = (instances > 0) & (kept == 0)
        rejected = set(np.unique(instances[is_rejected]).tolist())
        mask, instances = np.where(is_rejected, np.uint8(0), mask), kept
    return mask, instances if with_instances else None, rejected


def _write_prediction(folder: Path, stem: str, result: Result, *, with_labels: bool) -> None:
    probs = np.asarray(result.probabilities, np.float32)
    write_png(folder / "masks" / f"{stem}.png", result.mask.astype(np.uint8) * 255)
    write_png(folder / "probabilities" / f"{stem}.png", np.rint(255 * probs).astype(np.uint8))
    if with_labels:
        write_labels(folder / "instances", stem, result.labels)
