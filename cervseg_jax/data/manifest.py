"""Files that describe a dataset: the manifest with one line per image, and groups that users list."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cervseg_jax.errors import ConfigError, DataError
from cervseg_jax.files import csv_text, write_text

DATASET_FILE = "dataset.json"
"""Origin and settings of a dataset, beside its splits."""


class Record(NamedTuple):
    """One image of a prepared dataset."""

    split: str
    stem: str
    group: str
    fold: int
    subset: str
    source_path: str
    annotation_path: str
    source_height: int
    source_width: int
    height: int
    width: int
    transform: str
    """From positions in the source image to positions in this image."""
    num_nuclei: int
    """-1 if the annotation does not tell touching nuclei apart."""
    foreground: float
    source_sha256: str
    image_sha256: str


def write_manifest(path: Path, records: Sequence[Record]) -> None:
    """Writes `manifest.csv`."""
    write_text(path, csv_text(list(Record._fields), records))


def read_manifest(path: Path) -> list[dict[str, str]]:
    """Reads a manifest with at least the columns `split`, `stem` and `group`.

    Raises:
      DataError: if it cannot be read or lacks one of these columns.
    """
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            rows = list(csv.DictReader(file))
    except (OSError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    missing = {"split", "stem", "group"} - set(rows[0] if rows else ())
    if missing:
        raise DataError(f"{path}: lacks the columns {', '.join(sorted(missing))}")
    return rows


def groups_from_csv(stems: Sequence[str], path: Path) -> list[str]:
    """Reads the group of each image, such as its patient or slide, from the columns `stem` and `group`.

    Raises:
      ConfigError: if the file is missing or lacks a column.
      DataError: if an image is not in it.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except FileNotFoundError:
        raise ConfigError(f"--groups: no such file: {path}") from None
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise ConfigError(f"--groups: {path} cannot be read: {error}") from None
    if not rows or not {"stem", "group"} <= set(rows[0]):
        raise ConfigError(f"--groups: {path} needs the columns stem and group")
    names = {row["stem"]: row["group"] for row in rows}
    missing = [stem for stem in stems if stem not in names]
    if missing:
        raise DataError(f"{path}: has no group for {len(missing)} images, the first: {missing[0]}")
    return [names[stem] for stem in stems]
