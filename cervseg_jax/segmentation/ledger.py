"""Bookkeeping of `infer`: which images of an output folder are complete, and which of its files are its own."""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cervseg_jax.console import Reporter
from cervseg_jax.errors import ConfigError, first_few
from cervseg_jax.files import make_folder, read_text, temporary_name, write_json, write_text
from cervseg_jax.segmentation.jobs import Job
from cervseg_jax.segmentation.outputs import (
    IMAGE_COLUMNS,
    OUTPUTS,
    RENAMED_OUTPUTS,
    TABLES,
    has_results,
    remove_results,
)
from cervseg_jax.tables import csv_text, parse_csv_row

DONE, SETTINGS_FILE = ".done", "made_with.json"
"""Folder of the notes, inside the output folder."""
_FILE = IMAGE_COLUMNS.index("file")


def file_stamp(path: Path) -> list[str]:
    """Returns size in bytes and modification time in nanoseconds, by which a changed file is recognized.

    Raises:
      OSError: if there is no such file.
    """
    status = path.stat()
    return [str(status.st_size), str(status.st_mtime_ns)]


def require_writable(folder: Path) -> None:
    """Makes sure that files can be written, by writing one.

    Raises:
      ConfigError: naming the folder.
    """
    probe = folder / temporary_name("probe")
    try:
        probe.write_bytes(b"0")
        probe.unlink()
    except OSError as error:
        raise ConfigError(f"--out: {folder} cannot be written: {error.strerror}") from None


def read_settings(out: Path) -> dict[str, Any] | None:
    """Returns the settings of earlier calls for a folder; empty if there are none, None if their file is damaged."""
    try:
        return dict(json.loads((out / DONE / SETTINGS_FILE).read_bytes()))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (ValueError, TypeError):
        return None


class Ledger:
    """Notes about an output folder, in its folder `.done`.

    - `NAME.csv`: the image is complete. Holds its row of `images.csv`, and size and time of the image file.
    - `NAME.started`: some of the image's files may be there.
    - `made_with.json`: settings that the results depend on, and all outputs written so far ("owned_outputs").

    Only files that these notes name are ever removed: `OUTPUT/NAME.SUFFIX` and the tables.
    """

    def __init__(self, out: Path, outputs: Sequence[str]) -> None:
        """Opens the notes; nothing is read or written yet.

        Args:
          out: the output folder.
          outputs: keys of `OUTPUTS` that this call writes.
        """
        self._out = out
        self._outputs = tuple(outputs)
        self._folder = out / DONE
        self._note = out / DONE / SETTINGS_FILE

    def begin(
        self, jobs: Sequence[Job], settings: Mapping[str, Any], *, overwrite: bool, resume: bool, reporter: Reporter
    ) -> list[Job]:
        """Makes the folders, and removes results of earlier calls that this call does not keep.

        Args:
          jobs: all images of this call.
          settings: what results depend on besides the images, as JSON values.
          overwrite: remove all results of earlier calls.
          resume: keep complete images that have not changed since.
          reporter: for warnings.

        Returns:
          The images that are still to be done.

        Raises:
          ConfigError: if a folder cannot be written, or `resume` would mix results of different settings.
        """
        for name in (*self._outputs, DONE):
            require_writable(make_folder(self._out / name))
        settings = json.loads(json.dumps(settings))  # as they are read again
        note = read_settings(self._out)
        if resume:
            self._require_same(settings, note)
        inputs = {job.path.parent.resolve() for job in jobs}
        owned = {name for name in _owned_outputs(note or {}) if (self._out / name).resolve() not in inputs}
        given = {job.name for job in jobs}
        if overwrite:
            self._remove_all(owned, given, reporter)
            owned = set()
        owned |= set(self._outputs)
        write_json(self._note, {**settings, "owned_outputs": sorted(owned)})
        if resume:
            return self._unfinished(jobs, owned, reporter)
        for name in self._names() & given:
            self._started(name).touch()
            self._row(name).unlink(missing_ok=True)
        return list(jobs)

    def start(self, name: str) -> None:
        """Notes that files of an image will be written."""
        self._started(name).touch()

    def complete(self, name: str, row: Sequence[Any], stamp: Sequence[str]) -> None:
        """Notes that all files of an image are written.

        Args:
          name: name of the results.
          row: values by `IMAGE_COLUMNS`.
          stamp: `file_stamp` of the image, taken before it was read.
        """
        write_text(self._row(name), csv_text([], [[*row, *stamp]]), durable=False)
        self._started(name).unlink(missing_ok=True)

    def read_row(self, name: str) -> list[str] | None:
        """Returns the values of a complete image by `IMAGE_COLUMNS`; None if it is not complete."""
        values = self._read_values(name)
        return None if values is None else values[: len(IMAGE_COLUMNS)]

    def _row(self, name: str) -> Path:
        return self._folder / f"{name}.csv"

    def _started(self, name: str) -> Path:
        return self._folder / f"{name}.started"

    def _names(self) -> set[str]:
        return {path.stem for path in self._folder.iterdir() if path.suffix in (".csv", ".started")}

    def _require_same(self, settings: Mapping[str, Any], note: Mapping[str, Any] | None) -> None:
        if note is None:
            raise ConfigError(f"--resume: {self._note} is damaged; start again with --overwrite")
        changed = ", ".join(key for key in settings if note.get(key) != settings[key]) if note else ""
        if changed:
            raise ConfigError(
                f"--resume: {self._out} was made with other settings ({changed}); choose another folder, "
                "or start again with --overwrite"
            )

    def _read_values(self, name: str) -> list[str] | None:
        try:
            values = parse_csv_row(read_text(self._row(name)))
        except (OSError, ValueError):
            return None
        return values if len(values) >= len(IMAGE_COLUMNS) else None

    def _unfinished(self, jobs: Sequence[Job], owned: Collection[str], reporter: Reporter) -> list[Job]:
        todo, changed = [], []
        for job in jobs:
            values = self._read_values(job.name)
            if values is not None and not _is_same_file(job.path, values):
                changed.append(job.name)
                remove_results(self._out, job.name, owned)
                self._row(job.name).unlink()
            elif values is not None and has_results(self._out, job.name, self._outputs):
                continue
            todo.append(job)
        if changed:
            self._remove_tables(owned)
            reporter.warn(f"{len(changed)} images have changed and are done again: {first_few(changed)}")
        left_over = sorted(self._names() - {job.name for job in jobs})
        if left_over:
            reporter.warn(
                f"{self._out} holds results of {len(left_over)} images that are not among --images; the tables leave "
                f"them out, and --overwrite removes them: {first_few(left_over)}"
            )
        return todo

    def _remove_all(self, owned: Collection[str], given: Iterable[str], reporter: Reporter) -> None:
        names = self._names()
        for name in names:
            remove_results(self._out, name, owned)
            self._row(name).unlink(missing_ok=True)
            self._started(name).unlink(missing_ok=True)
        if names or self._note.exists():
            self._remove_tables(owned)
        left_over = sorted(names - set(given)) if owned else []
        if left_over:
            reporter.warn(
                f"removed the results of {len(left_over)} images that are no longer given: {first_few(left_over)}"
            )

    def _remove_tables(self, owned: Collection[str]) -> None:
        for table, output in TABLES.items():
            if output is None or output in owned:
                (self._out / table).unlink(missing_ok=True)


def _owned_outputs(note: Mapping[str, Any]) -> set[str]:
    names = note.get("owned_outputs", note.get("outputs"))  # release 0.1 noted the last call's only
    return {name for name in (*OUTPUTS, *RENAMED_OUTPUTS) if isinstance(names, list) and name in names}


def _is_same_file(path: Path, values: Sequence[str]) -> bool:
    try:
        return values[_FILE] == str(path) and list(values[len(IMAGE_COLUMNS) :]) == file_stamp(path)
    except OSError:
        return False
