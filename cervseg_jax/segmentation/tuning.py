"""Tuning of the threshold and the watershed parameters, on validation images only."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Integer

from cervseg_jax.console import Reporter
from cervseg_jax.data.decode import read_image
from cervseg_jax.data.pairs import Pair
from cervseg_jax.data.samples import read_instances
from cervseg_jax.heads import Head
from cervseg_jax.metrics.instance import count_instances, join_counts, panoptic_quality
from cervseg_jax.runs.weights import POSTPROCESSING_FILE
from cervseg_jax.schema import Config, PostprocessingConfig, ThresholdRule
from cervseg_jax.segmentation.instances import label_instances
from cervseg_jax.segmentation.postprocess import Postprocessing, make_mask, save_postprocessing
from cervseg_jax.segmentation.segmenter import Segmenter, load_segmenter

THRESHOLDS = (0.35, 0.5, 0.65)
BOUNDARY_THRESHOLDS = (0.3, 0.5, 0.7)
MIN_SADDLE_DEPTHS = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5)
SMOOTHINGS_PX = (1.0, 2.0)
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


def tune_segmenter(
    segmenter: Segmenter, pairs: Sequence[Pair], *, thresholds: Sequence[float] = THRESHOLDS
) -> tuple[Postprocessing, float]:
    """Predicts images as the segmenter does, with its tiles and test-time augmentation, and tunes on the result.

    Args:
      segmenter: its own threshold and parameters are not used; its threshold rule is.
      pairs: images with instance labels.
      thresholds: mask thresholds to try.

    Returns:
      As `tune`.
    """
    images = ((pair, read_image(pair.image_path, bit_depth=segmenter.bit_depth)) for pair in pairs)
    results = [result for _, result in segmenter.predict(images)]
    truths = [read_instances(pair, result.maps.shape[:2]) for pair, result in zip(pairs, results, strict=True)]
    return tune(
        [result.maps for result in results],
        truths,
        segmenter.predictor.heads,
        factors=[1.0 if result.scale is None else result.scale.factor for result in results],
        thresholds=thresholds,
        threshold_rule=segmenter.postprocessing.threshold_rule,
    )


def tune_run(run: Path, config: Config, pairs: Sequence[Pair], *, reporter: Reporter) -> Postprocessing:
    """Tunes a run's best weights on validation images with instance labels, and stores the result beside them.

    A threshold that the config sets is kept.

    Args:
      run: run folder with best weights.
      config: its config.
      pairs: validation images.
      reporter: for messages.

    Returns:
      The settings.
    """
    labelled = [pair for pair in pairs if pair.instances_path is not None][:MAX_IMAGES]
    segmenter = load_segmenter([run], config)
    is_free = config.infer.threshold is None and config.infer.threshold_rule == "fixed"
    thresholds = THRESHOLDS if is_free else (segmenter.postprocessing.threshold,)
    postprocessing, quality = tune_segmenter(segmenter, labelled, thresholds=thresholds)
    save_postprocessing(run / "best", postprocessing)
    path = run / "best" / POSTPROCESSING_FILE
    reporter.info(f"post-processing tuned on {len(labelled)} validation images, PQ {quality:.4f}: {path}")
    return postprocessing
