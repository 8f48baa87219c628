"""The parameters that tell nuclei apart, chosen on validation images alone."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from cervseg_jax.console import Reporter
from cervseg_jax.data.decode import read_image
from cervseg_jax.data.pairs import Pair
from cervseg_jax.data.samples import read_instances
from cervseg_jax.errors import CheckpointError
from cervseg_jax.files import write_text
from cervseg_jax.heads import Head
from cervseg_jax.metrics.instance import count_instances, join_counts, panoptic_quality
from cervseg_jax.runs.weights import POSTPROCESSING_FILE, load_network
from cervseg_jax.schema import Config, PostprocessingConfig
from cervseg_jax.segmentation.predict import make_predictor, predict_images
from cervseg_jax.segmentation.watershed import label_instances

THRESHOLDS = (0.35, 0.5, 0.65)
BOUNDARY_THRESHOLDS = (0.3, 0.5, 0.7)
DEPTHS = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5)
SMOOTHINGS_PX = (1.0, 2.0)
MAX_IMAGES = 32
"""More images hardly change the choice, and cost time."""


def tune(
    maps: Sequence[np.ndarray],
    truths: Sequence[np.ndarray],
    heads: Sequence[Head],
    *,
    depths: Sequence[float] = DEPTHS,
) -> tuple[PostprocessingConfig, float]:
    """Tries a grid of parameters and takes those of the highest mean PQ.

    Args:
      maps: predictions for each image, [h, w, maps] in [0, 1].
      truths: instance labels for each image.
      heads: what the maps are.
      depths: values of `min_saddle_depth` to try.

    Returns:
      The parameters and their mean PQ; of equal ones the first in the grid.
    """
    is_parted = "boundary" in heads and not {"distance", "hover"} & set(heads)
    grid = itertools.product(
        THRESHOLDS, BOUNDARY_THRESHOLDS if is_parted else BOUNDARY_THRESHOLDS[1:2], depths, SMOOTHINGS_PX
    )
    best, best_quality = PostprocessingConfig(), -1.0
    for threshold, boundary_threshold, min_saddle_depth, smoothing_px in grid:
        rules = PostprocessingConfig(
            threshold=threshold,
            boundary_threshold=boundary_threshold,
            min_saddle_depth=min_saddle_depth,
            smoothing_px=smoothing_px,
        )
        counts = join_counts(
            [
                count_instances(truth, label_instances(image, heads, rules))
                for image, truth in zip(maps, truths, strict=True)
            ]
        )
        quality = float(np.nan_to_num(panoptic_quality(counts)).mean())
        if quality > best_quality:
            best, best_quality = rules, quality
    return best, best_quality


def tune_run(run: Path, config: Config, pairs: Sequence[Pair], *, reporter: Reporter) -> PostprocessingConfig:
    """Tunes on validation images with instance labels, by the run's best weights, and writes what was found.

    Args:
      run: a run folder with best weights.
      config: its config.
      pairs: validation images.
      reporter: for messages.

    Returns:
      The parameters.
    """
    chosen = [pair for pair in pairs if pair.instances_path is not None][:MAX_IMAGES]
    network = load_network(run / "best", precision=config.runtime.precision)
    predictor = make_predictor([network], batch_size=config.infer.batch_size)
    images = [read_image(pair.image_path, bit_depth=config.data.bit_depth) for pair in chosen]
    maps = list(predict_images(predictor, images))
    truths = [read_instances(pair, image.shape[:2]) for pair, image in zip(chosen, images, strict=True)]
    rules, quality = tune(maps, truths, network.contract.heads)
    save_postprocessing(run / "best", rules)
    path = run / "best" / POSTPROCESSING_FILE
    reporter.info(f"post-processing tuned on {len(chosen)} validation images, PQ {quality:.4f}: {path}")
    return rules


def save_postprocessing(folder: Path, rules: PostprocessingConfig) -> None:
    """Writes the parameters beside the weights."""
    write_text(folder / POSTPROCESSING_FILE, rules.model_dump_json(indent=2) + "\n")


def load_postprocessing(folder: Path) -> PostprocessingConfig:
    """Reads the parameters beside the weights; the defaults where there are none.

    Raises:
      CheckpointError: if the file is damaged.
    """
    path = folder / POSTPROCESSING_FILE
    try:
        return PostprocessingConfig.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return PostprocessingConfig()
    except ValidationError as error:
        raise CheckpointError(f"{path}: is damaged: {error.errors()[0]['msg']}") from None
