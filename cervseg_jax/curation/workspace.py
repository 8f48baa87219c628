"""State of a dataset folder while it is made, so that an interrupted call can be continued."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cervseg_jax import __version__
from cervseg_jax.annotations.objects import Note
from cervseg_jax.curation.recipe import Assignment, ScannedImage
from cervseg_jax.data.decode import read_bytes
from cervseg_jax.data.manifest import DATASET_FILE, Record
from cervseg_jax.data.pairs import SPLITS
from cervseg_jax.errors import ConfigError
from cervseg_jax.files import (
    make_folder,
    read_json_object,
    refuse_filled_folder,
    remove_stale_temporaries,
    sha256_of,
    write_json,
    write_text,
)

RECORDS, DISCARDED, PLAN = ".records", ".records-discarded", "plan"


class Workspace:
    """Records of finished images within a dataset folder.

    `.records` exists from the first file to the end of the call. At the end it is renamed, which is atomic, and
    deleted: a dataset is complete if `dataset.json` says so and `.records` does not exist.
    """

    def __init__(self, out: Path, metadata: dict[str, Any]) -> None:
        """Describes the dataset; nothing is written.

        Args:
          out: folder of the dataset.
          metadata: JSON values that identify source and recipe.
        """
        self.metadata = metadata
        self._out = out
        self._records = out / RECORDS

    def is_begun(self) -> bool:
        """Whether an interrupted call with the same source and recipe left files in the folder.

        Raises:
          ConfigError: if the folder holds something else, or this dataset is complete.
        """
        path = self._out / DATASET_FILE
        if not path.exists():
            if self._out.is_dir():
                remove_stale_temporaries(self._out)
            refuse_filled_folder(self._out, shown=f"--out: {self._out}")
            return False
        try:
            found = read_json_object(path, error=ConfigError)
        except ConfigError as error:
            raise ConfigError(f"--out: {error}; choose another folder") from None
        is_same = all(found.get(key) == value for key, value in self.metadata.items())
        if not is_same:
            raise ConfigError(
                f"--out: {self._out} holds another dataset (see its {DATASET_FILE}); choose another folder"
            )
        if found.get("state") == "finished" and not self._records.exists():
            self._clean()
            raise ConfigError(f"--out: {self._out} already contains this dataset; nothing to do")
        return True

    def begin(self, plan: Mapping[str, tuple[ScannedImage, Assignment]]) -> None:
        """Makes the folder, or checks that the files in it belong to the same plan.

        Args:
          plan: each image and its split, by stem.

        Raises:
          ConfigError: if the source has changed since the files were written.
        """
        make_folder(self._out)
        path = self._out / DATASET_FILE
        if not path.exists():
            write_json(path, {**self.metadata, "version": __version__, "state": "building"})
        files = {entry.item.annotation_path for entry, _ in plan.values()}
        digests = {file: sha256_of(read_bytes(file)) for file in files}
        content = {
            stem: [*assigned, entry.sha256, digests[entry.item.annotation_path]]
            for stem, (entry, assigned) in plan.items()
        }
        digest = sha256_of(json.dumps(content, sort_keys=True).encode())
        path = make_folder(self._records) / PLAN
        if path.exists() and path.read_text() != digest:
            raise ConfigError(
                f"--out: {self._out} was started with different source files, so the split could differ; "
                "choose another folder"
            )
        write_text(path, digest)

    def load(self, stem: str) -> tuple[list[Record], list[Note]] | None:
        """Returns the records and notes of an image, or None if its files are still to be made."""
        path = self._records / f"{stem}.json"
        if not path.exists():
            return None
        stored = read_json_object(path)
        return [Record(**record) for record in stored["records"]], [Note(*note) for note in stored["notes"]]

    def save(self, stem: str, records: list[Record], notes: list[Note]) -> None:
        """Records that all files of an image are written."""
        write_json(self._records / f"{stem}.json", {"records": [r._asdict() for r in records], "notes": notes})

    def finish(self) -> None:
        """Marks the dataset as complete and removes the records."""
        self._records.rename(self._out / DISCARDED)
        self._clean()

    def _clean(self) -> None:
        """Removes discarded records, and temporary files that killed calls left."""
        discarded = self._out / DISCARDED
        if discarded.is_dir():
            for path in discarded.iterdir():
                path.unlink()
            discarded.rmdir()
        for folder in (self._out, *(self._out / split for split in SPLITS)):
            remove_stale_temporaries(folder)
