"""Reading and extending the files that describe a finished dataset."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cervseg_jax.curation.geometry import Geometry
from cervseg_jax.curation.recipe import Recipe
from cervseg_jax.curation.workspace import RECORDS
from cervseg_jax.data.manifest import DATASET_FILE, Record
from cervseg_jax.data.pairs import SPLITS
from cervseg_jax.errors import ConfigError, DataError
from cervseg_jax.files import read_json_object, read_text, write_text
from cervseg_jax.tables import csv_text, parse_csv_row, read_csv

OF_DATASET: Mapping[str, str] = {
    "geometry": "--padding, --size and --tile",
    "labels": "--label",
    "bit_depth": "--bit-depth",
    "valid": "--valid",
    "test": "--test",
    "seed": "--seed",
    "folds": "--folds",
    "fold": "--fold",
    "keep_near_duplicates_together": "--near-duplicates",
    "variants": "--variants",
}
"""Settings that added images take from the dataset, with the options that set them."""


class StoredDataset(NamedTuple):
    """A finished dataset of `prepare`."""

    folder: Path
    metadata: dict[str, Any]
    """Content of `dataset.json`."""
    recipe: Recipe

    @property
    def source(self) -> Path:
        """Folder that it was made from."""
        return Path(str(self.metadata.get("source", self.folder)))

    def recipe_for(self, given: Recipe) -> Recipe:
        """Returns the settings for images that are added: the dataset's, and how the new source is read.

        Args:
          given: `annotations`, `outlines`, `crowd`, `mask_rule` and `on_bad_file` of the new source are used, and its
            groups where they are given.
        """
        own = {name: getattr(self.recipe, name) for name in OF_DATASET}
        if given.group_pattern is None and given.groups_csv is None:
            own["group_pattern"] = self.recipe.group_pattern
        return given._replace(**own)


def refuse_settings_of_dataset(given: Recipe) -> None:
    """Makes sure that no setting was given which added images take from the dataset.

    Raises:
      ConfigError: naming the option.
    """
    default = Recipe()
    for name, option in OF_DATASET.items():
        if getattr(given, name) != getattr(default, name):
            raise ConfigError(f"--add-to: takes {option} from the dataset; leave it out")


def read_dataset(folder: Path) -> StoredDataset:
    """Reads what `prepare` noted about a dataset.

    Raises:
      ConfigError: if it is no finished dataset of `prepare`.
      DataError: if its notes are damaged.
    """
    path = folder / DATASET_FILE
    if not path.is_file() or not (folder / "manifest.csv").is_file():
        raise ConfigError(f"{folder}: is no dataset of `cervseg-jax prepare` ({DATASET_FILE} and manifest.csv)")
    metadata = read_json_object(path)
    if metadata.get("kind") != "prepared" or metadata.get("state") != "finished" or (folder / RECORDS).exists():
        raise ConfigError(f"{folder}: is no finished dataset of `cervseg-jax prepare`; see its {DATASET_FILE}")
    try:
        values = dict(metadata["recipe"])
        geometry: Any = {name: _as_tuple(value) for name, value in values["geometry"].items()}
        values["geometry"] = Geometry(**geometry)
        values["labels"] = tuple(values["labels"])
        values["groups_csv"] = None  # lists the first images only
        recipe = Recipe(**values)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: is damaged: its recipe cannot be read ({error})") from None
    return StoredDataset(folder, metadata, recipe)


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def append_to_manifest(path: Path, records: list[Record]) -> None:
    """Adds rows to a manifest, all or none of them; what is there keeps its bytes. Rows that are there are skipped.

    Raises:
      DataError: if it cannot be read.
    """
    rows = read_csv(path, columns=("split", "stem", "group"))
    present = {(row["split"], row["stem"]) for row in rows}
    text = read_text(path)
    header = parse_csv_row(text)
    values = [record._asdict() for record in records if (record.split, record.stem) not in present]
    if values:
        more = csv_text([], [[row.get(name, "") for name in header] for row in values])
        write_text(path, text + ("" if text.endswith("\n") else "\n") + more)


def count_splits(path: Path) -> dict[str, int]:
    """Returns the number of images of each split that a manifest lists."""
    splits = [row["split"] for row in read_csv(path, columns=("split",))]
    return {split: splits.count(split) for split in sorted(SPLITS) if split in splits}
