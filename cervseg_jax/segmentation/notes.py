"""Notes about all images of an output folder, and the stamps by which a changed image is recognized."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cervseg_jax.files import read_text
from cervseg_jax.segmentation.jobs import Job
from cervseg_jax.segmentation.outputs import IMAGE_COLUMNS
from cervseg_jax.storage.address import Address, as_path
from cervseg_jax.storage.cache import key_of
from cervseg_jax.tables import parse_csv_row

DONE, SETTINGS_FILE, PLAN_FILE = ".done", "made_with.json", "plan.json"
"""Folder of the notes, inside the output folder, and its files about all images."""


def file_stamp(path: Path) -> list[str]:
    """Returns size in bytes and modification time in nanoseconds, by which a changed file is recognized.

    Of a file at an address these are its size and the store's version of it; of a folder the sum and the latest of its
    files, at an address the sum and a hash of all names, sizes and versions.

    Raises:
      OSError: if there is no such file.
    """
    if isinstance(path, Address):
        entry = path.entry()
        if entry.is_folder:
            found = sorted((str(file), file.entry()) for file in path.files())
            return [str(sum(own.size or 0 for _, own in found)), key_of(*found)]
        return [str(entry.size), entry.version]
    if path.is_dir():
        found = [Path(folder, name).stat() for folder, _, names in os.walk(path) for name in names]
    else:
        found = [path.stat()]
    size, modified = sum(one.st_size for one in found), max((one.st_mtime_ns for one in found), default=0)
    return [str(size), str(modified)]


def read_settings(out: Path) -> dict[str, Any] | None:
    """Returns the settings of earlier calls for a folder; empty if there are none, None if their file is damaged."""
    try:
        return dict(json.loads((out / DONE / SETTINGS_FILE).read_bytes()))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (ValueError, TypeError):
        return None


def read_plan(out: Path) -> list[Job] | None:
    """Returns all images of the last call for a folder, in order; None if there was none, or its note is damaged."""
    try:
        return [Job(as_path(path), name) for name, path in json.loads((out / DONE / PLAN_FILE).read_bytes())]
    except (OSError, ValueError, TypeError):
        return None


def read_values(path: Path, count: int) -> list[str] | None:
    """Returns a row of at least `count` values; None if there is none, or it is damaged."""
    try:
        values = parse_csv_row(read_text(path))
    except (OSError, ValueError):
        return None
    return values if len(values) >= count else None


def is_same_file(path: Path, values: Sequence[str]) -> bool:
    """Whether an image is the one of which `Ledger.complete` noted values and stamp, unchanged."""
    try:
        return values[IMAGE_COLUMNS.index("file")] == str(path) and list(values[len(IMAGE_COLUMNS) :]) == file_stamp(
            path
        )
    except OSError:
        return False
