"""The parameters that tell nuclei apart, chosen on validation images alone."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from cervseg_jax.errors import CheckpointError
from cervseg_jax.files import write_text
from cervseg_jax.heads import Head
from cervseg_jax.inference.instances import separate
from cervseg_jax.metrics.instance import count_instances, join_counts, panoptic_quality
from cervseg_jax.sections import SeparationConfig

FILE = "separation.json"
THRESHOLDS = (0.35, 0.5, 0.65)
BOUNDARY_THRESHOLDS = (0.3, 0.5, 0.7)
DEPTHS = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5)
SMOOTHINGS_PX = (1.0, 2.0)


def tune(
    maps: Sequence[np.ndarray], truths: Sequence[np.ndarray], heads: Sequence[Head]
) -> tuple[SeparationConfig, float]:
    """Tries a grid of parameters and takes those of the highest mean PQ.

    Args:
      maps: predictions for each image, [h, w, maps] in [0, 1].
      truths: instance labels for each image.
      heads: what the maps are.

    Returns:
      The parameters and their mean PQ; of equal ones the first in the grid.
    """
    is_parted = "boundary" in heads and not {"distance", "hover"} & set(heads)
    grid = itertools.product(
        THRESHOLDS, BOUNDARY_THRESHOLDS if is_parted else BOUNDARY_THRESHOLDS[1:2], DEPTHS, SMOOTHINGS_PX
    )
    best, best_quality = SeparationConfig(), -1.0
    for threshold, boundary_threshold, min_depth, smoothing_px in grid:
        rules = SeparationConfig(
            threshold=threshold,
            boundary_threshold=boundary_threshold,
            min_depth=min_depth,
            smoothing_px=smoothing_px,
        )
        counts = join_counts(
            [count_instances(truth, separate(image, heads, rules)) for image, truth in zip(maps, truths, strict=True)]
        )
        quality = float(np.nan_to_num(panoptic_quality(counts)).mean())
        if quality > best_quality:
            best, best_quality = rules, quality
    return best, best_quality


def save_rules(folder: Path, rules: SeparationConfig) -> None:
    """Writes the parameters beside the weights."""
    write_text(folder / FILE, rules.model_dump_json(indent=2) + "\n")


def load_rules(folder: Path) -> SeparationConfig:
    """Reads the parameters beside the weights; the defaults where there are none.

    Raises:
      CheckpointError: if the file is damaged.
    """
    path = folder / FILE
    try:
        return SeparationConfig.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return SeparationConfig()
    except ValidationError as error:
        raise CheckpointError(f"{path}: is damaged: {error.errors()[0]['msg']}") from None
