"""What a run folder or an inference folder tells, read once for the page and the cards."""

import csv
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cervseg_jax.data.pairs import SPLITS
from cervseg_jax.errors import CheckpointError, ConfigError
from cervseg_jax.files import read_text
from cervseg_jax.runs.folder import load_run_config
from cervseg_jax.schema import Config


class PartFacts(NamedTuple):
    """An evaluated part of a dataset."""

    name: str
    folder: Path
    summary: dict[str, Any]
    rows: list[dict[str, str]]
    """One per image, the lowest Dice first; scores of nuclei are joined where there are any."""


class RunFacts(NamedTuple):
    """Everything about a run."""

    folder: Path
    config: Config
    config_text: str
    environment: dict[str, Any]
    contract: dict[str, Any] | None
    """Of the best weights; None before the first epoch is done."""
    history: dict[str, list[Any]]
    events: list[dict[str, Any]]
    parts: list[PartFacts]
    """The test part first."""
    data: list[dict[str, str]]
    """One row per file: split, stem, group ..."""
    dataset: dict[str, Any]
    """`dataset.json` and `audit.json` of the dataset, by name, where they are there."""
    address: str | None = None
    """Address of a run in a bucket."""

    @property
    def is_finished(self) -> bool:
        """Whether the training has come to its end, as far as its files tell."""
        epochs = len(self.history.get("epoch", []))
        best = (self.contract or {}).get("epoch", 0)
        patience = self.config.train.early_stop_patience
        return epochs >= self.config.train.epochs or (patience is not None and epochs - best >= patience > 0)


class InferenceFacts(NamedTuple):
    """Everything about a folder that `infer` wrote."""

    folder: Path
    rows: list[dict[str, str]]
    """One per image, the most doubtful first."""
    nuclei: list[dict[str, str]]
    failed: list[dict[str, str]]


def read_run(folder: Path) -> RunFacts:
    """Reads a run folder, finished or not.

    Raises:
      ConfigError: if there is no such folder.
      CheckpointError: if it is no run folder, or a file in it is damaged.
    """
    config = load_run_config(folder)
    evaluated = sorted((folder / "eval").glob("*/summary.json"), key=_test_first)
    root = config.data.root
    return RunFacts(
        folder.absolute(),
        config,
        read_text(folder / "config.yaml"),
        _json(folder / "env.json") or {},
        _json(folder / "best" / "contract.json"),
        _json(folder / "history.json") or {},
        _events(folder / "log.jsonl"),
        [_part(path.parent) for path in evaluated],
        rows_of(folder / "data.csv"),
        {name: _json(root / f"{name}.json") for name in ("dataset", "audit") if (root / f"{name}.json").is_file()},
    )


def read_inference(folder: Path) -> InferenceFacts:
    """Reads a folder that `infer` wrote.

    Raises:
      ConfigError: if there is no such folder, or nothing was inferred in it.
    """
    rows = rows_of(folder / "images.csv")
    if not rows:
        raise ConfigError(f"{folder}: holds neither a run (config.yaml) nor inferred images (images.csv)")
    rows.sort(key=lambda row: -float(row["doubt"]))
    return InferenceFacts(folder.absolute(), rows, rows_of(folder / "nuclei.csv"), rows_of(folder / "failed.csv"))


def split_counts(data: Sequence[dict[str, str]]) -> list[tuple[str, int, int]]:
    """Returns name, number of images and of sources of each part."""
    found = []
    for split in SPLITS:
        rows = [row for row in data if row["split"] == split]
        if rows:
            found.append((split, len(rows), len({row["group"] for row in rows})))
    return found


def rows_of(path: Path) -> list[dict[str, str]]:
    """Reads a table; empty where there is none.

    Raises:
      CheckpointError: if it is damaged.
    """
    try:
        return list(csv.DictReader(io.StringIO(read_text(path)))) if path.is_file() else []
    except (OSError, csv.Error) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from None


def epoch_folders(folder: Path) -> list[tuple[int, Path]]:
    """Returns the folders of previews with their epochs, in order."""
    found = []
    for path in (folder / "previews").glob("epoch_*"):
        match = re.fullmatch(r"epoch_(\d+)", path.name)
        if match:
            found.append((int(match[1]), path))
    return sorted(found)


def _part(folder: Path) -> PartFacts:
    nuclei = {row["stem"]: row for row in rows_of(folder / "nuclei_per_image.csv")}
    rows = [row | nuclei.get(row["stem"], {}) for row in rows_of(folder / "per_image.csv")]
    return PartFacts(folder.name, folder, _json(folder / "summary.json") or {}, rows)


def _test_first(path: Path) -> tuple[bool, str]:
    return path.parent.name != "test", path.parent.name


def _json(path: Path) -> Any:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is damaged: {error}") from None


def _events(path: Path) -> list[dict[str, Any]]:
    """Reads a log; a last line that is being written is left out."""
    events = []
    for line in read_text(path).splitlines() if path.is_file() else []:
        try:
            events.append(json.loads(line))
        except ValueError:
            continue
    return events
