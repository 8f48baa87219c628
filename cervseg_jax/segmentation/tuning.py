"""Tuning of the threshold and the watershed parameters, on validation images only."""

import itertools
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
from jaxtyping import Float, Integer

from cervseg_jax.console import Reporter
from cervseg_jax.data.decode import read_image
from cervseg_jax.data.pairs import Pair
from cervseg_jax.data.samples import read_instances
from cervseg_jax.heads import Head
from cervseg_jax.metrics.instance import count_instances, panoptic_quality
from cervseg_jax.runs.weights import POSTPROCESSING_FILE
from cervseg_jax.runtime.distributed import allgather_rows, is_primary, share_of, sync_errors
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
        for column, settings in enumerate(candidates):
            mask = make_mask(image[..., 0], settings.threshold, settings.threshold_rule)
            labels = label_instances(image, mask, heads, settings.at_scale(factor).params)
            qualities[row, column] = np.nan_to_num(panoptic_quality(count_instances(truth, labels)))[0]
    return qualities


def _best(candidates: Sequence[Postprocessing], qualities: np.ndarray) -> tuple[Postprocessing, float]:
    means = [float(column.mean()) for column in np.ascontiguousarray(qualities.T)]
    index = int(np.argmax(means))
    return candidates[index], means[index]


def tune_segmenter(
    segmenter: Segmenter,
    pairs: Sequence[Pair],
    *,
    thresholds: Sequence[float] = THRESHOLDS,
    is_shared: bool = False,
) -> tuple[Postprocessing, float]:
    """Predicts images as the segmenter does, with its tiles and test-time augmentation, and tunes on the result.

    Args:
      segmenter: its own threshold and parameters are not used; its threshold rule is.
      pairs: images with instance labels.
      thresholds: mask thresholds to try.
      is_shared: do the share of this process, and gather the others' qualities. Collective: call it on every process.

    Returns:
      As `tune`.
    """
    heads = segmenter.predictor.heads
    candidates = _candidates(heads, thresholds, segmenter.postprocessing.threshold_rule)
    own = share_of(len(pairs)) if is_shared else range(len(pairs))
    own_pairs = [pairs[index] for index in own]
    with sync_errors() if is_shared else nullcontext():
        images = ((pair, read_image(pair.image_path, bit_depth=segmenter.bit_depth)) for pair in own_pairs)
        results = [result for _, result in segmenter.predict(images)]
        truths = [read_instances(pair, result.maps.shape[:2]) for pair, result in zip(own_pairs, results, strict=True)]
        factors = [1.0 if result.scale is None else result.scale.factor for result in results]
        qualities = _qualities(candidates, [result.maps for result in results], truths, heads, factors)
    return _best(candidates, allgather_rows(own, qualities) if is_shared else qualities)


def tune_run(
    run: Path, config: Config, pairs: Sequence[Pair], *, reporter: Reporter, is_shared: bool = False
) -> Postprocessing:
    """Tunes a run's best weights on validation images with instance labels, and stores the result beside them.

    A threshold that the config sets is kept.

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
    segmenter = load_segmenter([run], config)
    is_free = config.infer.threshold is None and config.infer.threshold_rule == "fixed"
    thresholds = THRESHOLDS if is_free else (segmenter.postprocessing.threshold,)
    postprocessing, quality = tune_segmenter(segmenter, labelled, thresholds=thresholds, is_shared=is_shared)
    if is_primary():
        save_postprocessing(run / "best", postprocessing)
    path = run / "best" / POSTPROCESSING_FILE
    reporter.info(f"post-processing tuned on {len(labelled)} validation images, PQ {quality:.4f}: {path}")
    return postprocessing
