"""Tuning of the threshold, the watershed and the suppression of outlines, on validation images only."""

import itertools
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Integer

from cervseg_jax.console import Reporter
from cervseg_jax.data.decode import read_image
from cervseg_jax.data.pairs import Pair
from cervseg_jax.data.samples import read_instances, whole_truth
from cervseg_jax.extents import Extent
from cervseg_jax.heads import Head
from cervseg_jax.metrics.instance import count_instances, panoptic_quality
from cervseg_jax.metrics.whole import count_whole
from cervseg_jax.runs.weights import CONFIDENCE_FILE, POSTPROCESSING_FILE
from cervseg_jax.runtime.distributed import allgather_rows, is_primary, share_of, sync_errors
from cervseg_jax.schema import Config, PostprocessingConfig, ThresholdRule
from cervseg_jax.segmentation.calibration import Judged, fit_confidence, gather_judged, join_judged, judge
from cervseg_jax.segmentation.candidates import dense_heads
from cervseg_jax.segmentation.confidence import Confidence, features_of, save_confidence
from cervseg_jax.segmentation.instances import label_instances
from cervseg_jax.segmentation.postprocess import Postprocessing, make_mask, save_postprocessing
from cervseg_jax.segmentation.result import Result
from cervseg_jax.segmentation.segmenter import Segmenter, load_segmenter
from cervseg_jax.segmentation.suppression import Proposals, suppress
from cervseg_jax.segmentation.whole import whole_nuclei

THRESHOLDS = (0.35, 0.5, 0.65)
BOUNDARY_THRESHOLDS = (0.3, 0.5, 0.7)
MIN_SADDLE_DEPTHS = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5)
SMOOTHINGS_PX = (1.0, 2.0)
MIN_SCORES = (0.3, 0.4, 0.5)
MAX_IOUS = (0.3, 0.45)
MAX_IMAGES = 32
"""Maximum number of images; more hardly change the result."""


def tune(
    maps: Sequence[Float[np.ndarray, "_ _ maps"]],
    truths: Sequence[Integer[np.ndarray, "_ _"]],
    heads: Sequence[Head],
    *,
    factors: Sequence[float] | None = None,
    thresholds: Sequence[float] = THRESHOLDS,
    threshold_rule: ThresholdRule = "fixed",
    min_saddle_depths: Sequence[float] = MIN_SADDLE_DEPTHS,
) -> tuple[Postprocessing, float]:
    """Grid search for the highest mean PQ.

    Args:
      maps: probabilities of each image.
      truths: true label map of each image.
      heads: heads of the network in the order of the maps.
      factors: factor of each image's size at which the network saw it; None: 1.
      thresholds: mask thresholds to try.
      threshold_rule: how masks are made; with another rule than "fixed" the thresholds change nothing.
      min_saddle_depths: values of `min_saddle_depth` to try.

    Returns:
      The best settings and their mean PQ; the first in the grid where several are equal.
    """
    candidates = _candidates(heads, thresholds, threshold_rule, min_saddle_depths)
    return _best(candidates, _qualities(candidates, maps, truths, heads, factors))


def _candidates(
    heads: Sequence[Head],
    thresholds: Sequence[float],
    threshold_rule: ThresholdRule,
    min_saddle_depths: Sequence[float] = MIN_SADDLE_DEPTHS,
) -> list[Postprocessing]:
    """Returns the grid, the threshold outermost."""
    uses_boundary_threshold = "boundary" in heads and not {"distance", "hover"} & set(heads)
    boundary_thresholds = BOUNDARY_THRESHOLDS if uses_boundary_threshold else BOUNDARY_THRESHOLDS[1:2]
    grid = itertools.product(thresholds, boundary_thresholds, min_saddle_depths, SMOOTHINGS_PX)
    return [
        Postprocessing(
            threshold,
            threshold_rule,
            PostprocessingConfig(boundary_threshold=boundary, min_saddle_depth=depth, smoothing_px=smoothing),
        )
        for threshold, boundary, depth, smoothing in grid
    ]


def _qualities(
    candidates: Sequence[Postprocessing],
    maps: Sequence[np.ndarray],
    truths: Sequence[np.ndarray],
    heads: Sequence[Head],
    factors: Sequence[float] | None,
) -> np.ndarray:
    """Returns the PQ of each image with each candidate, float64 [images, candidates]; 0 where it is not defined."""
    factors = [1.0] * len(maps) if factors is None else factors
    qualities = np.zeros((len(maps), len(candidates)))
    for row, (image, truth, factor) in enumerate(zip(maps, truths, factors, strict=True)):
        rules = {(settings.threshold, settings.threshold_rule) for settings in candidates}
        masks = {rule: make_mask(image[..., 0], *rule) for rule in rules}
        for column, settings in enumerate(candidates):
            mask = masks[settings.threshold, settings.threshold_rule]
            labels = label_instances(image, mask, heads, settings.at_scale(factor).params)
            qualities[row, column] = np.nan_to_num(panoptic_quality(count_instances(truth, labels)))[0]
    return qualities


def _best(candidates: Sequence[Postprocessing], qualities: np.ndarray) -> tuple[Postprocessing, float]:
    means = [float(column.mean()) for column in np.ascontiguousarray(qualities.T)]
    index = int(np.argmax(means))
    return candidates[index], means[index]


def predict_pairs(segmenter: Segmenter, pairs: Sequence[Pair]) -> list[Result]:
    """Predicts images as the segmenter does, with its tiles and test-time augmentation."""
    images = ((pair, read_image(pair.image_path, bit_depth=segmenter.bit_depth)) for pair in pairs)
    return [result for _, result in segmenter.predict(images)]


class Tuned(NamedTuple):
    """Outcome of tuning."""

    postprocessing: Postprocessing
    quality: float
    """Mean PQ of the images; with the head "rays" that of whole nuclei."""
    confidence: Confidence | None
    """None where there are too few nuclei to fit it."""


def tune_segmenter(
    segmenter: Segmenter,
    pairs: Sequence[Pair],
    *,
    thresholds: Sequence[float] = THRESHOLDS,
    is_shared: bool = False,
) -> Tuned:
    """Predicts images as the segmenter does, tunes on the result and fits the confidence of nuclei.

    Args:
      segmenter: its own threshold and parameters are not used; its threshold rule is.
      pairs: images with instance labels.
      thresholds: mask thresholds to try.
      is_shared: do the share of this process, and gather the others' qualities. Collective: call it on every process.

    Returns:
      The best settings, as of `tune`; with the head "rays" the parameters of whole outlines as well.
    """
    share = _Share.of(len(pairs), is_shared=is_shared)
    own = [pairs[index] for index in share.indices]
    with share.guard():
        results = predict_pairs(segmenter, own)
    postprocessing, quality = _tune_results(segmenter, results, own, share, thresholds=thresholds)
    with share.guard():
        tuned = [result.with_postprocessing(postprocessing.at_scale(_factor(result))) for result in results]
        parts = [judge_result(result, _whole_nuclei(pair, result)) for pair, result in zip(own, tuned, strict=True)]
    judged = gather_judged(parts, share.indices) if share.is_divided else join_judged(parts)
    return Tuned(postprocessing, quality, fit_confidence(judged, num_images=len(pairs)))


class _Share(NamedTuple):
    """The images of this process."""

    indices: Sequence[int]
    is_divided: bool
    """Whether other processes have the other images."""

    @classmethod
    def of(cls, count: int, *, is_shared: bool) -> "_Share":
        return cls(share_of(count) if is_shared else range(count), is_shared)

    def guard(self) -> AbstractContextManager[None]:
        """Raises what goes wrong within the block on every process."""
        return sync_errors() if self.is_divided else nullcontext()

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Returns the rows of all images, one each. Collective if divided."""
        return allgather_rows(self.indices, rows) if self.is_divided else rows


def _tune_results(
    segmenter: Segmenter,
    results: Sequence[Result],
    pairs: Sequence[Pair],
    share: _Share,
    *,
    thresholds: Sequence[float],
) -> tuple[Postprocessing, float]:
    heads = dense_heads(segmenter.predictor.heads)
    candidates = _candidates(heads, thresholds, segmenter.postprocessing.threshold_rule)
    with share.guard():
        truths = [read_instances(pair, result.maps.shape[:2]) for pair, result in zip(pairs, results, strict=True)]
        factors = [_factor(result) for result in results]
        qualities = _qualities(candidates, [result.maps for result in results], truths, heads, factors)
    best, quality = _best(candidates, share.gather(qualities))
    if "rays" not in segmenter.predictor.heads:
        return best, quality
    with share.guard():
        qualities = _outline_qualities(results, pairs, best)
    return _best(_outline_candidates(best), share.gather(qualities))


def _outline_candidates(postprocessing: Postprocessing) -> list[Postprocessing]:
    return [
        postprocessing._replace(params=postprocessing.params.model_copy(update={"min_score": score, "max_iou": iou}))
        for score, iou in itertools.product(MIN_SCORES, MAX_IOUS)
    ]


def _outline_qualities(results: Sequence[Result], pairs: Sequence[Pair], postprocessing: Postprocessing) -> np.ndarray:
    """Returns the PQ of whole nuclei of each image with each of `_outline_candidates`; 0 where it is not defined."""
    qualities = np.zeros((len(pairs), len(MIN_SCORES) * len(MAX_IOUS)))
    for row, (pair, result) in enumerate(zip(pairs, results, strict=True)):
        shape, truth = (result.maps.shape[0], result.maps.shape[1]), _whole_nuclei(pair, result)
        mask = make_mask(result.probabilities, postprocessing.threshold, postprocessing.threshold_rule)
        params = postprocessing.at_scale(_factor(result)).params
        assert result.candidates is not None  # noqa: S101 (networks with the head have some)
        proposals = Proposals(result.candidates, shape=shape, min_score=min(MIN_SCORES))
        for column, (score, iou) in enumerate(itertools.product(MIN_SCORES, MAX_IOUS)):
            detections = suppress(proposals, min_score=score, max_iou=iou)
            nuclei = whole_nuclei(np.asarray(result.maps), mask, result.heads, params, detections)
            counts = count_whole(truth, [nucleus.extent for nucleus in nuclei])
            qualities[row, column] = np.nan_to_num(panoptic_quality(counts))[0]
    return qualities


def judge_result(result: Result, truth: Sequence[Extent]) -> Judged:
    """Compares the nuclei found in an image with the true ones at full extent."""
    return judge(features_of(result.nuclei.table, result.nuclei.whole), result.extents, truth)


def _whole_nuclei(pair: Pair, result: Result) -> list[Extent]:
    return list(whole_truth(pair, result.maps.shape[:2]).values())


def _factor(result: Result) -> float:
    return 1.0 if result.scale is None else result.scale.factor


def tune_run(
    run: Path, config: Config, pairs: Sequence[Pair], *, reporter: Reporter, is_shared: bool = False
) -> Postprocessing:
    """Tunes a run's best weights on validation images with instance labels, and stores the result beside them.

    A threshold that the config sets is kept. The confidence of nuclei is fitted on the same images.

    Args:
      run: run folder with best weights.
      config: its config.
      pairs: validation images.
      reporter: for messages.
      is_shared: as of `tune_segmenter`; process 0 stores the result.

    Returns:
      The settings.
    """
    labelled = [pair for pair in pairs if pair.instances_path is not None][:MAX_IMAGES]
    every = config.infer.model_copy(update={"min_probability": None, "precision": None, "recall": None})
    segmenter = load_segmenter([run], config.model_copy(update={"infer": every}))
    is_free = config.infer.threshold is None and config.infer.threshold_rule == "fixed"
    thresholds = THRESHOLDS if is_free else (segmenter.postprocessing.threshold,)
    postprocessing, quality, confidence = tune_segmenter(
        segmenter, labelled, thresholds=thresholds, is_shared=is_shared
    )
    if is_primary():
        save_postprocessing(run / "best", postprocessing)
        save_confidence(run / "best", confidence)
    path = run / "best" / POSTPROCESSING_FILE
    reporter.info(f"post-processing tuned on {len(labelled)} validation images, PQ {quality:.4f}: {path}")
    if confidence is not None:
        reporter.info(
            f"confidence fitted on {confidence.num_nuclei} nuclei, of which {confidence.num_matched} are right: "
            f"{run / 'best' / CONFIDENCE_FILE}"
        )
    return postprocessing
