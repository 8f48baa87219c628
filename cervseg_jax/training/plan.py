"""Plans a training from a dataset: a recipe that starts from built-in weights, with the reason for each value.

Reference: the idea of deriving a recipe from a data fingerprint is that of nnU-Net, Isensee et al. 2021,
doi:10.1038/s41592-020-01008-z.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cervseg_jax.console import Reporter
from cervseg_jax.data.checks import ReadFiles, check_pairs, join_splits
from cervseg_jax.data.pairs import find_pairs
from cervseg_jax.errors import ConfigError, DataError
from cervseg_jax.pretrained_weights import FOLDER
from cervseg_jax.runs.folder import load_run_config
from cervseg_jax.runs.weights import read_contract
from cervseg_jax.schema import DataConfig
from cervseg_jax.storage.address import as_path

BASE = "pap"
"""Built-in weights that planned trainings start from."""
STEPS_PER_EPOCH = 25
STEPS_PER_IMAGE, MIN_STEPS, MAX_STEPS = 50, 300, 2000
"""Updates of a training, by number of training images."""
MIN_SPREAD, MAX_SPREAD = 1.25, 1.6
"""Limits of the random magnification."""
SAME_SCALE = 1.5
"""Images whose nuclei differ by less than this factor are taken to be of one magnification."""
FEW_SOURCES = 20
"""With fewer sources all images are trained on: a few validation images select epochs by chance."""
INIT_SHARE = 0.3
"""Of the built-in weights in the final ones, where sources are few."""
GRAY_SATURATION = 8.0
"""Mean saturation, 0..255, below which an image counts as gray."""
MEMORY_PER_IMAGE = 2**29
"""Bytes that a window takes in a training step, with a margin."""


class PlannedValue(NamedTuple):
    """A config value and why it was chosen."""

    key: str
    """`section.key`."""
    value: Any
    reason: str


class DataProperties(NamedTuple):
    """What a plan is made from."""

    num_train: int
    """Images to train on, with those for validation where sources are few."""
    num_valid: int
    """Images that are kept for validation."""
    num_sources: int
    """Sources of all these images."""
    num_with_instances: int
    """Training images with instance labels."""
    diameters_px: np.ndarray
    """Median diameter of nuclei in each image that has some, float64 [n]."""
    spread: float
    """Ratio of large to small nuclei within an image: the 84th to the 16th percentile, mean over the images."""
    gray_share: float
    """Share of the images without color."""


def read_dataset(root: Path, *, reporter: Reporter) -> ReadFiles:
    """Reads the files of a dataset once.

    Args:
      root: folder with `{train,valid}/{images,masks}`; "valid" may be missing.
      reporter: for progress.

    Raises:
      ConfigError: if folders are missing.
      DataError: if files are bad.
    """
    data = DataConfig(root=root)
    found, _ = find_pairs(data, needed=("train",))
    checked = {}
    for split in ("train", "valid"):
        pairs = found.get(split, [])
        with reporter.progress(f"reading {split}", len(pairs)) as advance:
            checked[split] = check_pairs(pairs, data, measure=True, on_progress=advance)
    return ReadFiles(data, checked)


def data_properties(read: ReadFiles) -> DataProperties:
    """Returns what a plan needs of a dataset.

    Raises:
      DataError: if there are no nuclei.
    """
    stats, valid = (read.checked[split].stats for split in ("train", "valid"))
    joined = join_splits(stats, valid)
    num_sources = len({item.pair.group for item in joined})
    if num_sources < FEW_SOURCES:
        stats, valid = joined, []
    known = [sizes for item in stats if (sizes := item.diameters_px)]
    if not known:
        raise DataError(f"{read.data.root}: the training images have no annotated nuclei")
    ratios = [np.percentile(sizes, 84) / np.percentile(sizes, 16) for sizes in known]
    return DataProperties(
        len(stats),
        len(valid),
        num_sources,
        sum(item.pair.instances_path is not None for item in stats),
        np.array([np.median(sizes) for sizes in known]),
        float(np.mean(ratios)),
        float(np.mean([item.saturation is not None and item.saturation < GRAY_SATURATION for item in stats])),
    )


def plan_values(data: DataProperties, root: Path) -> list[PlannedValue]:
    """Returns the values of a recipe for a dataset.

    Args:
      data: properties of the dataset.
      root: its folder.

    Returns:
      The values that differ from the defaults of the config, by section.
    """
    contract, base = read_contract(FOLDER / BASE / "best"), load_run_config(FOLDER / BASE)
    assert contract.scale is not None  # noqa: S101 (the built-in weights have a scale)
    least, median, most = (float(value) for value in np.percentile(data.diameters_px, (5, 50, 95)))
    shown = f"nuclei are {median:.0f} px across in the median image ({least:.0f} to {most:.0f})"
    steps = min(MAX_STEPS, max(MIN_STEPS, STEPS_PER_IMAGE * data.num_train))
    batch_size = _batch_size()
    from_base = f"that of the built-in weights {BASE}"
    values = [
        PlannedValue("model.name", contract.model_name, from_base),
        PlannedValue("model.image_size", list(contract.image_size), f"{from_base}: windows of the scaled images"),
        PlannedValue("model.heads", list(contract.heads), _heads_reason(data)),
        PlannedValue("data.root", str(root), f"{data.num_train} images for training, {data.num_valid} for validation"),
        PlannedValue("data.train_on_valid", not data.num_valid, _validation_reason(data)),
        PlannedValue("data.nucleus_px", contract.scale.nucleus_px, f"{shown}; {BASE} was trained at this size"),
        PlannedValue(
            "augment.window", _window(data), f"nuclei differ by a factor of {data.spread:.1f} within an image"
        ),
        PlannedValue("augment.operations", _operations(data), _stain_reason(data)),
        PlannedValue("train.epochs", round(steps / STEPS_PER_EPOCH), f"{steps} updates for {data.num_train} images"),
        PlannedValue("train.steps_per_epoch", STEPS_PER_EPOCH, "an epoch of few images would be too short to compare"),
        PlannedValue("train.batch_size", batch_size, "by the memory of this machine"),
        PlannedValue("train.learning_rate", 5e-4, "half of that for training from scratch"),
        PlannedValue("train.init_from", BASE, "few images suffice to adapt weights, not to learn them"),
        PlannedValue("train.ema_decay", 0.98, "averaged weights overfit later and vary less from epoch to epoch"),
        *_selection(data),
        PlannedValue("train.touching_weight", 0.5, "separates touching nuclei"),
        PlannedValue("train.clip_value", 0.5, "limits the effect of single images"),
        PlannedValue("train.plateau", None, "the cosine below takes its place"),
        PlannedValue("train.cosine", {"final_factor": 0.05}, "the learning rate falls over the whole training"),
        PlannedValue("infer.min_probability", base.infer.min_probability, f"{from_base}: leaves improbable nuclei out"),
    ]
    if most < SAME_SCALE * least:
        values.append(PlannedValue("infer.nucleus_px", round(median, 1), f"{shown}: one magnification"))
    return values


def _validation_reason(data: DataProperties) -> str:
    if data.num_valid:
        return f"{data.num_valid} images tell when to stop"
    if data.num_sources >= FEW_SOURCES:
        return "there are no validation images"
    return f"{data.num_sources} sources are too few to tell by some of them when to stop, and each teaches"


def _selection(data: DataProperties) -> list[PlannedValue]:
    """Returns how the final weights are chosen."""
    if data.num_valid:
        few = f"{data.num_valid} validation images are few"
        return [
            PlannedValue("train.selection_epochs", 3, f"{few}: the best epoch has the lowest mean val_loss of three"),
            PlannedValue("train.early_stop_patience", 8, "stops when that mean has not fallen for so long"),
        ]
    reason = f"weights that stay {INIT_SHARE:.0%} {BASE} forget less of other slides (Wortsman et al. 2022)"
    return [
        PlannedValue("train.init_share", INIT_SHARE, reason),
        PlannedValue("train.early_stop_patience", None, "no validation images are left to stop by"),
    ]


def _heads_reason(data: DataProperties) -> str:
    if data.num_with_instances == data.num_train:
        return "the images have instance labels"
    if data.num_with_instances:
        return f"{data.num_with_instances} of {data.num_train} images have instance labels, the others train the mask"
    return f"the images have masks only: boundary and distance stay as {BASE} learned them"


def _stain_reason(data: DataProperties) -> str:
    return f"{data.gray_share:.0%} of the images are gray"


def _window(data: DataProperties) -> dict[str, Any]:
    limit = round(min(MAX_SPREAD, max(MIN_SPREAD, float(np.sqrt(data.spread)))), 2)
    return {"scale": [round(1 / limit, 2), limit]}


def _operations(data: DataProperties) -> list[dict[str, Any]]:
    operations: list[dict[str, Any]] = [{"name": "flip"}]
    if data.gray_share < 1.0:
        operations += [
            {"name": "stain", "probability": 0.5, "args": {"max_gain": 0.2}},
            {"name": "reinhard", "probability": 0.5},
        ]
    return [
        *operations,
        {"name": "color", "probability": 0.7, "args": {"brightness": 0.1, "contrast": 0.2}},
        {"name": "blur", "probability": 0.3},
        {"name": "jpeg", "probability": 0.2},
    ]


def _batch_size() -> int:
    """Returns 8, 4 or 2, by the machine's memory; accelerators hold 8."""
    available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return next((size for size in (8, 4) if available >= 2 * size * MEMORY_PER_IMAGE), 2)


def plan_text(values: Sequence[PlannedValue], *, title: str) -> str:
    """Returns a recipe as YAML, with the reasons as comments.

    Example:
      >>> print(plan_text([PlannedValue("train.epochs", 5, "few images")], title="Plan"))
      # Plan
      train:
        # few images
        epochs: 5
      <BLANKLINE>
    """
    lines, section = [f"# {title}"], ""
    for value in values:
        name, _, key = value.key.partition(".")
        if name != section:
            section = name
            lines.append(f"{name}:")
        lines += [f"  # {value.reason}", f"  {key}: {json.dumps(value.value)}"]
    return "\n".join(lines) + "\n"


def plan_training(root: Path, *, reporter: Reporter) -> tuple[str, ReadFiles]:
    """Returns the planned recipe for a dataset as YAML, and the files that were read for it.

    Args:
      root: folder with `{train,valid}/{images,masks}`, as `prepare` makes it; "valid" may be missing.
      reporter: for progress.

    Raises:
      ConfigError: if folders are missing.
      DataError: if files are bad or there are no nuclei.
    """
    root = as_path(root).absolute()
    if not (root / "train" / "images").is_dir():
        raise ConfigError(f"{root}: is no dataset with train/images; `cervseg-jax prepare` makes one")
    read = read_dataset(root, reporter=reporter)
    return plan_text(plan_values(data_properties(read), root), title=f"Planned for {root.name}"), read
