"""Reads run folders and inference folders for the page and the cards."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast, get_args

from cervseg_jax.choices import BitDepth
from cervseg_jax.data.pairs import SPLITS
from cervseg_jax.errors import CheckpointError, ConfigError
from cervseg_jax.files import read_json_object, read_text
from cervseg_jax.runs.folder import load_run_config
from cervseg_jax.runs.weights import read_contract
from cervseg_jax.schema import Config
from cervseg_jax.segmentation.ledger import read_settings
from cervseg_jax.tables import read_csv

REQUIRED_SUMMARY_KEYS = ("command", "num_images", "num_sources", "intervals", "dice_mean", "weights_sha256")
RENAMED = {
    "doubt": "uncertainty",
    "doubt_against_dice": "uncertainty_against_dice",
    "doubt_against_pq": "uncertainty_against_pq",
}
"""Current names of columns and keys in files of earlier versions, by old name."""


class Evaluation(NamedTuple):
    """Results of one call of `eval`."""

    name: str
    """Split, or dataset and split, with a suffix if the prediction settings differ from the run's."""
    folder: Path
    summary: dict[str, Any]
    rows: list[dict[str, str]]
    """One per image, lowest Dice first, including scores of nuclei if there are any."""


class RunData(NamedTuple):
    """The contents of a run folder."""

    folder: Path
    config: Config
    config_text: str
    environment: dict[str, Any]
    contract: dict[str, Any] | None
    """Preprocessing contract of the best weights; None before the first epoch is finished."""
    history: dict[str, list[Any]]
    """One value per finished epoch, by column; without columns that have no values."""
    events: list[dict[str, Any]]
    evaluations: list[Evaluation]
    """The test split first."""
    files: list[dict[str, str]]
    """One row per image of the dataset: split, stem, group, paths and hash."""
    dataset: dict[str, Any]
    """Contents of the dataset's `dataset.json` and `audit.json`, by stem, where they exist."""
    address: Path | None = None
    """Address of a run in a bucket."""

    @property
    def best_epoch(self) -> int:
        """Epoch that was selected by validation images; 0 for none."""
        return 0 if self.contract is None or self.config.data.train_on_valid else self.contract["epoch"]

    @property
    def is_finished(self) -> bool:
        """Whether the training has reached its last epoch or stopped early."""
        epochs = len(self.history.get("epoch", []))
        best = (self.contract or {}).get("epoch", 0)
        patience = self.config.train.early_stop_patience
        return epochs >= self.config.train.epochs or (patience is not None and epochs - best >= patience > 0)


class InferenceData(NamedTuple):
    """The contents of a folder written by `infer`."""

    folder: Path
    rows: list[dict[str, str]]
    """One per image, the most uncertain first."""
    failed: list[dict[str, str]]
    """File and reason of each image that failed."""
    bit_depth: BitDepth
    """How 16-bit images were read."""


def load_run(folder: Path) -> RunData:
    """Reads a run folder, finished or not.

    Raises:
      ConfigError: if there is no such folder.
      CheckpointError: if it is not a run folder, or a file in it is damaged.
    """
    config = load_run_config(folder)
    evaluated = sorted((folder / "eval").glob("*/summary.json"), key=_test_first)
    root = config.data.root
    return RunData(
        folder.absolute(),
        config,
        read_text(folder / "config.yaml"),
        _load_object(folder / "env.json") or {},
        _load_contract(folder / "best"),
        _load_history(folder / "history.json"),
        _load_events(folder / "log.jsonl"),
        [_load_evaluation(path.parent) for path in evaluated],
        load_table(folder / "data.csv", columns=("split", "stem", "group", "image_path", "image_sha256")),
        {name: content for name in ("dataset", "audit") if (content := _load_object(root / f"{name}.json"))},
    )


def load_inference(folder: Path) -> InferenceData:
    """Reads a folder written by `infer`.

    Raises:
      ConfigError: if it holds no images.csv.
      CheckpointError: if a table is damaged.
    """
    path, failed = folder / "images.csv", load_table(folder / "failed.csv", columns=("file", "reason"))
    rows = load_table(path, columns=("image", "file"))
    if not rows and not failed:
        raise ConfigError(f"{folder}: is neither a run folder (config.yaml) nor an inference folder (images.csv)")
    rows.sort(key=lambda row: -(number(row.get("uncertainty")) or 0.0))
    stated = (read_settings(folder) or {}).get("bit_depth")
    depth = cast(BitDepth, stated) if stated in get_args(BitDepth) else "auto"
    return InferenceData(folder.absolute(), rows, failed, depth)


def split_counts(files: Sequence[dict[str, str]]) -> list[tuple[str, int, int]]:
    """Returns name, number of images and number of sources of each split."""
    counts = []
    for split in SPLITS:
        rows = [row for row in files if row["split"] == split]
        if rows:
            counts.append((split, len(rows), len({row["group"] for row in rows})))
    return counts


def load_table(path: Path, *, columns: Sequence[str]) -> list[dict[str, str]]:
    """Reads a table with current column names; empty if there is no file.

    Raises:
      CheckpointError: if it is damaged.
    """
    if not path.is_file():
        return []
    rows = read_csv(path, columns=columns, error=CheckpointError)
    return [{RENAMED.get(name, name): value for name, value in row.items()} for row in rows]


def number(text: str | None) -> float | None:
    """Returns a table's value, rounded to six decimals; None where it is empty, undefined or not a number."""
    try:
        value = float(text or "nan")
    except ValueError:
        return None
    return round(value, 6) if abs(value) < float("inf") else None


def epoch_folders(folder: Path) -> list[tuple[int, Path]]:
    """Returns the run's preview folders with their epochs, in order."""
    matches = [(re.fullmatch(r"epoch_(\d+)", path.name), path) for path in (folder / "previews").glob("epoch_*")]
    return sorted((int(match[1]), path) for match, path in matches if match)


def _load_evaluation(folder: Path) -> Evaluation:
    path = folder / "summary.json"
    summary = {RENAMED.get(name, name): value for name, value in (_load_object(path) or {}).items()}
    missing = [name for name in REQUIRED_SUMMARY_KEYS if name not in summary]
    if missing:
        raise CheckpointError(f"{path}: lacks {', '.join(missing)}; run `cervseg-jax eval` again")
    nuclei = {row["stem"]: row for row in load_table(folder / "nuclei_per_image.csv", columns=("stem",))}
    rows = load_table(folder / "per_image.csv", columns=("stem", "image_path", "mask_path"))
    return Evaluation(folder.name, folder, summary, [row | nuclei.get(row["stem"], {}) for row in rows])


def _test_first(path: Path) -> tuple[bool, str]:
    return path.parent.name != "test", path.parent.name


def _load_object(path: Path) -> dict[str, Any] | None:
    """Reads a JSON object; None if there is no file."""
    return read_json_object(path, error=CheckpointError) if path.is_file() else None


def _load_contract(folder: Path) -> dict[str, Any] | None:
    return read_contract(folder).model_dump(mode="json") if (folder / "contract.json").is_file() else None


def _load_history(path: Path) -> dict[str, list[Any]]:
    history = _load_object(path) or {}
    columns = history.values()
    if not all(isinstance(values, list) for values in columns) or len({len(values) for values in columns}) > 1:
        raise CheckpointError(f"{path}: is damaged: must hold lists of equal length")
    return {name: values for name, values in history.items() if any(value is not None for value in values)}


def _load_events(path: Path) -> list[dict[str, Any]]:
    """Reads a log, without a last line that is still being written."""
    events = []
    for line in read_text(path).splitlines() if path.is_file() else []:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict):
            events.append(event)
    return events
