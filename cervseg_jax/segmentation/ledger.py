"""Bookkeeping of `infer`: which images of an output folder are complete, and which of its files are its own."""

import json
import os
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cervseg_jax.console import Reporter
from cervseg_jax.errors import ConfigError, first_few
from cervseg_jax.files import make_folder, remove_folder, sha256_of, write_json, write_text
from cervseg_jax.segmentation.bands import Bands
from cervseg_jax.segmentation.jobs import Job, require_writable
from cervseg_jax.segmentation.notes import DONE, PLAN_FILE, SETTINGS_FILE, is_same_file, read_settings, read_values
from cervseg_jax.segmentation.outputs import (
    IMAGE_COLUMNS,
    OUTPUTS,
    RENAMED_OUTPUTS,
    TABLES,
    file_sizes,
    has_results,
    remove_results,
    result_names,
)
from cervseg_jax.storage.address import Address
from cervseg_jax.storage.cached import map_parallel
from cervseg_jax.tables import csv_text

MAX_NAME_BYTES = 255
"""Longest name of a file on usual disks."""
_ROW, _STARTED, _FAILED, _BANDS = ".csv", ".started", ".failed", ".bands"


class Ledger:
    """Notes about an output folder, in its folder `.done`. Several processes may share the folder.

    - `NAME.csv`: the image is complete. Holds its row of `images.csv`, and size and time of the image file.
    - `NAME.started`: some of the image's files may be there.
    - `NAME.failed`: the image failed. Holds its row of `failed.csv`.
    - `NAME.bands`: a folder with parts of a slide's probabilities, see `Bands`.
    - `made_with.json`: settings that the results depend on, and all outputs written so far ("owned_outputs").
    - `plan.json`: name and file of all images of the call in order, also those of other processes.

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
        self._is_remote = isinstance(out, Address)
        self._with_bands: set[str] | None = None

    def begin(
        self,
        jobs: Sequence[Job],
        settings: Mapping[str, Any],
        *,
        share: Sequence[Job] | None = None,
        overwrite: bool,
        resume: bool,
        reporter: Reporter,
    ) -> list[Job]:
        """Makes the folders, and removes results of earlier calls that this call does not keep.

        Args:
          jobs: all images of this call.
          settings: what results depend on besides the images, as JSON values.
          share: those of `jobs` that this process does, while others may be at work in the same folder; their files
            are left alone. None: all.
          overwrite: remove all results of earlier calls.
          resume: keep complete images that have not changed since.
          reporter: for warnings.

        Returns:
          The images that are still to be done.

        Raises:
          ConfigError: if a folder cannot be written, or results of different settings would be mixed.
        """
        self.require_writable()
        settings = json.loads(json.dumps(settings))  # as they are read again
        note = read_settings(self._out)
        if resume or share is not None:
            self._require_same(settings, note, "start again with --overwrite" if share is None else "remove it")
        inputs = {job.path.parent.resolve() for job in jobs}
        owned = {name for name in _owned_outputs(note or {}) if (self._out / name).resolve() not in inputs}
        own = jobs if share is None else share
        given = {job.name for job in own}
        if overwrite:
            self._remove_all(owned, self._names() if share is None else self._names() & given, given, reporter)
            owned = set() if share is None else owned
        owned |= set(self._outputs)
        write_json(self._folder / PLAN_FILE, [[job.name, str(job.path)] for job in jobs])
        write_json(self._note, {**settings, "owned_outputs": sorted(owned)})
        if resume:
            todo = self._unfinished(jobs, own, owned, reporter)
        else:
            todo = list(own)
            for name in self._names() & given:
                self._place(name, _STARTED).touch()
                self._place(name, _ROW).unlink(missing_ok=True)
        notes = self.list_notes()
        for job in todo:
            failure = self._place(job.name, _FAILED)
            if failure.name in notes:
                failure.unlink(missing_ok=True)
        if todo:
            self._remove_tables(self._outputs)  # they are written again when all images are done
        return todo

    def require_writable(self) -> None:
        """Makes the folders, and makes sure that files can be written there.

        Raises:
          ConfigError: naming the folder that cannot be written.
        """
        for name in (*self._outputs, DONE):
            require_writable(make_folder(self._out / name))

    def start(self, name: str) -> None:
        """Notes that files of an image will be written."""
        self._place(name, _STARTED).touch()

    def complete(self, name: str, row: Sequence[Any], stamp: Sequence[str]) -> None:
        """Notes that all files of an image are written.

        Args:
          name: name of the results.
          row: values by `IMAGE_COLUMNS`.
          stamp: `file_stamp` of the image, taken before it was read.
        """
        write_text(self._place(name, _ROW), csv_text([], [[*row, *stamp]]), durable=False)
        self._place(name, _STARTED).unlink(missing_ok=True)
        self._remove_bands(name)

    def fail(self, job: Job, reason: str) -> None:
        """Notes that an image failed, and why."""
        write_text(self._place(job.name, _FAILED), csv_text([], [[job.path, reason]]), durable=False)
        self._remove_bands(job.name)

    def list_notes(self) -> set[str]:
        """Returns the names of all notes."""
        try:
            return {path.name for path in self._folder.iterdir()}
        except (FileNotFoundError, NotADirectoryError):
            return set()

    def read_row(self, name: str, notes: Container[str] | None = None) -> list[str] | None:
        """Returns the values of a complete image by `IMAGE_COLUMNS`; None if it is not complete.

        Args:
          name: name of the results.
          notes: what `list_notes` has returned, where many images are asked for; None: it is called.
        """
        values = self._read_values(name, self.list_notes() if notes is None else notes)
        return None if values is None else values[: len(IMAGE_COLUMNS)]

    def is_settled(self, name: str, notes: Container[str]) -> bool:
        """Whether an image is complete or has failed; see `read_row`."""
        return any(self._place(name, suffix).name in notes for suffix in (_ROW, _FAILED))

    def read_failure(self, name: str, notes: Container[str] | None = None) -> list[str] | None:
        """Returns file and reason of an image that failed; None if it did not. See `read_row`."""
        path = self._place(name, _FAILED)
        return read_values(path, 2) if path.name in (self.list_notes() if notes is None else notes) else None

    def bands(self, name: str, stamp: Sequence[str]) -> Bands:
        """Returns the bands of a slide; `stamp` as of `complete`."""
        self._names_with_bands().add(name)
        return Bands(self._place(name, _BANDS), stamp, is_wanted=lambda: not self._is_settled(name))

    def has_bands(self, name: str) -> bool:
        """Whether bands of a slide were there when this was asked first, or have been asked for since."""
        return name in self._names_with_bands()

    def _names_with_bands(self) -> set[str]:
        if self._with_bands is None:
            self._with_bands = {note.stem for note in map(Path, self.list_notes()) if note.suffix == _BANDS}
        return self._with_bands

    def remove_left_bands(self) -> None:
        """Removes the bands that a process wrote of a slide that another one had completed meanwhile."""
        for folder in self._folder.glob(f"*{_BANDS}"):
            if self._is_settled(folder.stem):
                remove_folder(folder)

    def _is_settled(self, name: str) -> bool:
        return self._place(name, _ROW).exists() or self._place(name, _FAILED).exists()

    def has_results_of(self, jobs: Iterable[Job]) -> bool:
        """Whether a file of one of these images is there, or a note that it is complete."""
        notes, sizes = self.list_notes(), self._sizes()
        return any(
            self._place(job.name, _ROW).name in notes
            or any(name in files for output, files in sizes.items() for name in result_names(job.name, output))
            for job in jobs
        )

    def _place(self, name: str, suffix: str) -> Path:
        file_name = f"{name}{suffix}"
        if len(os.fsencode(file_name)) > MAX_NAME_BYTES:
            file_name = f"{sha256_of(os.fsencode(name))}{suffix}"
        return self._folder / file_name

    def _remove_bands(self, name: str) -> None:
        if not self._is_remote or self.has_bands(name):
            remove_folder(self._place(name, _BANDS))

    def _names(self) -> set[str]:
        notes = map(Path, self.list_notes())
        return {note.stem for note in notes if note.suffix in (_ROW, _STARTED, _BANDS)}

    def _require_same(self, settings: Mapping[str, Any], note: Mapping[str, Any] | None, remedy: str) -> None:
        if note is None:
            raise ConfigError(f"--out: {self._note} is damaged; {remedy}")
        changed = ", ".join(key for key in settings if note.get(key) != settings[key]) if note else ""
        if changed:
            raise ConfigError(
                f"--out: {self._out} was made with other settings ({changed}); choose another folder, or {remedy}"
            )

    def _read_values(self, name: str, notes: Container[str]) -> list[str] | None:
        path = self._place(name, _ROW)
        return read_values(path, len(IMAGE_COLUMNS)) if path.name in notes else None

    def _sizes(self) -> dict[str, dict[str, int]]:
        return {output: file_sizes(self._out / output) for output in self._outputs}

    def _unfinished(
        self, jobs: Sequence[Job], share: Sequence[Job], owned: Collection[str], reporter: Reporter
    ) -> list[Job]:
        todo, changed = [], []
        notes, sizes = self.list_notes(), self._sizes()
        rows = map_parallel(lambda job: self._read_values(job.name, notes), share, is_remote=self._is_remote)
        for job, values in zip(share, rows, strict=True):
            if values is not None and not is_same_file(job.path, values):
                changed.append(job.name)
                remove_results(self._out, job.name, owned)
                self._place(job.name, _ROW).unlink()
            elif values is not None and has_results(sizes, job.name):
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

    def _remove_all(
        self, owned: Collection[str], names: Collection[str], given: Collection[str], reporter: Reporter
    ) -> None:

        def remove(name: str) -> None:
            remove_results(self._out, name, owned)
            self._remove_bands(name)
            for suffix in (_ROW, _STARTED, _FAILED):
                self._place(name, suffix).unlink(missing_ok=True)

        map_parallel(remove, list(names), is_remote=self._is_remote)
        if names or self._note.exists():
            self._remove_tables(owned)
        left_over = sorted(set(names) - set(given)) if owned else []
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
