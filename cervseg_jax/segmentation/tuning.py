"""Tuning of the threshold, the watershed and the suppression of outlines, on validation images only."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Integer

from cervseg_jax.console import Reporter
from cervseg_jax.data.decode import read_image
from cervseg_jax.data.pairs import Pair
from cervseg_jax.data.samples import read_instances, whole_truth
from cervseg_jax.heads import Head
from cervseg_jax.metrics.instance import count_instances, join_counts, panoptic_quality
from cervseg_jax.metrics.whole import count_whole
from cervseg_jax.runs.weights import CONFIDENCE_FILE, POSTPROCESSING_FILE
from cervseg_jax.schema import Config, PostprocessingConfig, ThresholdRule
from cervseg_jax.segmentation.calibration import Judged, fit_confidence, join_judged, judge
from cervseg_jax.segmentation.candidates import dense_heads
from cervseg_jax.segmentation.confidence import features_of, save_confidence
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
    uses_boundary_threshold = "boundary" in heads and not {"distance", "hover"} & set(heads)
    grid = itertools.product(
        BOUNDARY_THRESHOLDS if uses_boundary_threshold else BOUNDARY_THRESHOLDS[1:2], min_saddle_depths, SMOOTHINGS_PX
    )
    candidates = [
        PostprocessingConfig(boundary_threshold=boundary, min_saddle_depth=depth, smoothing_px=smoothing)
        for boundary, depth, smoothing in grid
    ]
    factors = [1.0] * len(maps) if factors is None else factors
    best, best_quality = Postprocessing(threshold_rule=threshold_rule), -1.0
    for threshold in thresholds:
        masks = [make_mask(image[..., 0], threshold, threshold_rule) for image in maps]
        for params in candidates:
            settings = Postprocessing(threshold, threshold_rule, params)
            labels = [
                label_instances(image, mask, heads, settings.at_scale(factor).params)
                for image, mask, factor in zip(maps, masks, factors, strict=True)
            ]
            counts = join_counts(list(map(count_instances, truths, labels)))
            quality = float(np.nan_to_num(panoptic_quality(counts)).mean())
            if quality > best_quality:
                best, best_quality = settings, quality
    return best, best_quality


def predict_pairs(segmenter: Segmenter, pairs: Sequence[Pair]) -> list[Result]:
    """Predicts images as the segmenter does, with its tiles and test-time augmentation."""
    images = ((pair, read_image(pair.image_path, bit_depth=segmenter.bit_depth)) for pair in pairs)
    return [result for _, result in segmenter.predict(images)]


def tune_segmenter(
    segmenter: Segmenter, pairs: Sequence[Pair], *, thresholds: Sequence[float] = THRESHOLDS
) -> tuple[Postprocessing, float]:
    """Predicts images as the segmenter does and tunes on the result.

    Args:
      segmenter: its own threshold and parameters are not used; its threshold rule is.
      pairs: images with instance labels.
      thresholds: mask thresholds to try.

    Returns:
      As `tune`; with the head "rays" the parameters of whole outlines as well, and the mean PQ of whole nuclei.
    """
    return _tune_results(segmenter, predict_pairs(segmenter, pairs), pairs, thresholds=thresholds)


def _tune_results(
    segmenter: Segmenter, results: Sequence[Result], pairs: Sequence[Pair], *, thresholds: Sequence[float]
) -> tuple[Postprocessing, float]:
    truths = [read_instances(pair, result.maps.shape[:2]) for pair, result in zip(pairs, results, strict=True)]
    best, quality = tune(
        [result.maps for result in results],
        truths,
        dense_heads(segmenter.predictor.heads),
        factors=[_factor(result) for result in results],
        thresholds=thresholds,
        threshold_rule=segmenter.postprocessing.threshold_rule,
    )
    return tune_outlines(results, pairs, best) if "rays" in segmenter.predictor.heads else (best, quality)


def tune_outlines(
    results: Sequence[Result], pairs: Sequence[Pair], postprocessing: Postprocessing
) -> tuple[Postprocessing, float]:
    """Grid search of the parameters of whole outlines for the highest mean PQ of whole nuclei.

    Args:
      results: predictions with candidates.
      pairs: their images with instance labels.
      postprocessing: threshold and watershed parameters, which are kept.

    Returns:
      The settings with the best parameters, and their mean PQ.
    """
    qualities: dict[tuple[float, float], list[float]] = {}
    for pair, result in zip(pairs, results, strict=True):
        shape = (result.maps.shape[0], result.maps.shape[1])
        truth = list(whole_truth(pair, shape).values())
        mask = make_mask(result.probabilities, postprocessing.threshold, postprocessing.threshold_rule)
        params = postprocessing.at_scale(_factor(result)).params
        assert result.candidates is not None  # noqa: S101 (see the arguments)
        proposals = Proposals(result.candidates, shape=shape, min_score=min(MIN_SCORES))
        for score, iou in itertools.product(MIN_SCORES, MAX_IOUS):
            detections = suppress(proposals, min_score=score, max_iou=iou)
            nuclei = whole_nuclei(np.asarray(result.maps), mask, result.heads, params, detections)
            counts = count_whole(truth, [nucleus.extent for nucleus in nuclei])
            qualities.setdefault((score, iou), []).append(float(np.nan_to_num(panoptic_quality(counts))[0]))
    means = {key: float(np.mean(values)) for key, values in qualities.items()}
    score, iou = max(means, key=lambda key: means[key])
    params = postprocessing.params.model_copy(update={"min_score": score, "max_iou": iou})
    return postprocessing._replace(params=params), means[score, iou]


def judge_result(result: Result, pair: Pair) -> Judged:
    """Compares the nuclei found in an image with those of its instance labels."""
    truth = list(whole_truth(pair, result.maps.shape[:2]).values())
    return judge(features_of(result.nuclei.table, result.nuclei.whole), result.extents, truth)


def _factor(result: Result) -> float:
    return 1.0 if result.scale is None else result.scale.factor


def tune_run(run: Path, config: Config, pairs: Sequence[Pair], *, reporter: Reporter) -> Postprocessing:
    """Tunes a run's best weights on validation images with instance labels, and stores the result beside them.

    A threshold that the config sets is kept. The confidence of nuclei is fitted on the same images.

    Args:
      run: run folder with best weights.
      config: its config.
      pairs: validation images.
      reporter: for messages.

    Returns:
      The settings.
    """
    labelled = [pair for pair in pairs if pair.instances_path is not None][:MAX_IMAGES]
    every = config.infer.model_copy(update={"min_probability": None, "precision": None, "recall": None})
    segmenter = load_segmenter([run], config.model_copy(update={"infer": every}))
    is_free = config.infer.threshold is None and config.infer.threshold_rule == "fixed"
    thresholds = THRESHOLDS if is_free else (segmenter.postprocessing.threshold,)
    results = predict_pairs(segmenter, labelled)
    postprocessing, quality = _tune_results(segmenter, results, labelled, thresholds=thresholds)
    save_postprocessing(run / "best", postprocessing)
    path = run / "best" / POSTPROCESSING_FILE
    reporter.info(f"post-processing tuned on {len(labelled)} validation images, PQ {quality:.4f}: {path}")
    tuned = [result.with_postprocessing(postprocessing.at_scale(_factor(result))) for result in results]
    judged = join_judged([judge_result(result, pair) for pair, result in zip(labelled, tuned, strict=True)])
    confidence = fit_confidence(judged, num_images=len(labelled))
    save_confidence(run / "best", confidence)
    if confidence is not None:
        reporter.info(
            f"confidence fitted on {confidence.num_nuclei} nuclei, of which {confidence.num_matched} are right: "
            f"{run / 'best' / CONFIDENCE_FILE}"
        )
    return postprocessing
