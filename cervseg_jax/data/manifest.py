"""The manifest of a dataset, one row per image, and the table of patients or slides that users give."""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from cervseg_jax.data.decode import IMAGE_SUFFIXES
from cervseg_jax.errors import ConfigError, DataError
from cervseg_jax.files import write_text
from cervseg_jax.tables import csv_text, read_csv

DATASET_FILE = "dataset.json"
"""File with origin and settings of a dataset, beside its splits."""


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
    """Maps positions in the source to positions in this image."""
    num_nuclei: int
    """-1 if there are no instance labels."""
    foreground: float
    source_sha256: str
    image_sha256: str


STEM_SPELLINGS = ("image", "file", "filename", "file_name", "image_name", "name")
GROUP_SPELLINGS = ("patient", "patient_id", "slide", "slide_id", "case", "case_id", "source")
"""Column names accepted for `stem` and `group` in users' tables, by priority."""


def write_manifest(path: Path, records: Sequence[Record], extra: Mapping[str, Mapping[str, str]] | None = None) -> None:
    """Writes `manifest.csv`.

    Args:
      path: the file.
      records: one per image.
      extra: values of further columns, such as the stain, by `source_path`; a column with the name of one of `Record`'s
        fields gets the prefix `group_`, and `group` is left out.
    """
    extra = extra or {}
    names = [name for name in dict.fromkeys(name for row in extra.values() for name in row) if name != "group"]
    header = [f"group_{name}" if name in Record._fields else name for name in names]
    rows = [[*record, *(extra.get(record.source_path, {}).get(name, "") for name in names)] for record in records]
    write_text(path, csv_text([*Record._fields, *header], rows))


def read_manifest(path: Path) -> list[dict[str, str]]:
    """Reads a manifest with at least the columns `split`, `stem` and `group`.

    Raises:
      DataError: if it cannot be read or lacks one of these columns.
    """
    return read_csv(path, columns=("split", "stem", "group"))


def image_columns(paths: Iterable[Path]) -> list[dict[str, str]]:
    """Returns what the manifests of datasets say about images, besides what `prepare` measured.

    Args:
      paths: images; those in `DATASET/SPLIT/images` are looked up.

    Returns:
      For each image, its `group` and the columns of the user's table of patients or slides; empty outside of datasets.

    Raises:
      DataError: if a manifest cannot be read.
    """
    manifests: dict[Path, dict[tuple[str, str], dict[str, str]]] = {}
    columns = []
    for path in paths:
        images = path.absolute().parent
        manifest = images.parent.parent / "manifest.csv"
        if images.name != "images":
            columns.append({})
            continue
        if manifest not in manifests:
            rows = read_manifest(manifest) if manifest.is_file() else []
            manifests[manifest] = {(row["split"], _stem_key(row["stem"])): row for row in rows}
        row = manifests[manifest].get((images.parent.name, _stem_key(path.name)), {})
        columns.append({name: row[name] for name in row if name == "group" or name not in Record._fields})
    return columns


def groups_from_csv(stems: Sequence[str], path: Path) -> list[dict[str, str]]:
    """Reads the table of `--groups`: the patient or slide of each image, and further columns.

    Args:
      stems: stems of the images.
      path: a CSV file with the columns `stem` and `group`, or names such as `image` and `patient`. Images may be given
        with folder and suffix.

    Returns:
      One row per stem: `group`, and the table's other columns.

    Raises:
      ConfigError: if the file is missing, lacks a column or a group, or names an image twice with different groups.
      DataError: if an image is not in it.
    """
    if not path.is_file():
        raise ConfigError(f"--groups: no such file: {path}")
    rows: dict[str, dict[str, str]] = {}
    for row in read_csv(path, columns={"stem": STEM_SPELLINGS, "group": GROUP_SPELLINGS}, error=ConfigError):
        values = {name: value.strip() for name, value in row.items()}
        stem = _stem_key(values.pop("stem"))
        group = rows.setdefault(stem, values)["group"]
        if group != values["group"]:
            raise ConfigError(f"{path}: {stem} is listed with two groups, {group} and {values['group']}")
    missing = [stem for stem in stems if _stem_key(stem) not in rows]
    if missing:
        raise DataError(f"{path}: has no group for {len(missing)} of {len(stems)} images, the first: {missing[0]}")
    return [rows[_stem_key(stem)] for stem in stems]


def _stem_key(name: str) -> str:
    """Returns a name without folder and image suffix, in Unicode's composed form."""
    name = unicodedata.normalize("NFC", name).replace("\\", "/").rpartition("/")[2]
    stem, dot, suffix = name.rpartition(".")
    return stem if dot + suffix.lower() in IMAGE_SUFFIXES else name
