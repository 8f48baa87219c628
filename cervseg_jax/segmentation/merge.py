"""The files about all images: `images.csv`, `nuclei.csv`, `coco.json` and `failed.csv`.

They are made from the notes and files of single images, by the call that did the last of them, or by `merge`, from one
folder or several. Their order is that of the images of the call.
"""

import csv
import io
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cervseg_jax.annotations.coco import coco_document
from cervseg_jax.console import Reporter
from cervseg_jax.data.manifest import image_columns
from cervseg_jax.errors import ConfigError, DataError, first_few
from cervseg_jax.files import make_folder, read_json_object, read_text, write_text
from cervseg_jax.segmentation.jobs import Job
from cervseg_jax.segmentation.ledger import Ledger
from cervseg_jax.segmentation.notes import DONE, PLAN_FILE, SETTINGS_FILE, read_plan, read_settings
from cervseg_jax.segmentation.outputs import IMAGE_COLUMNS
from cervseg_jax.storage.address import Address, as_path
from cervseg_jax.storage.cached import map_parallel, read_ahead
from cervseg_jax.tables import csv_text


class Done(NamedTuple):
    """A complete image."""

    name: str
    folder: Path
    """Output folder that holds its files."""
    row: list[str]
    """Values by `IMAGE_COLUMNS`."""


class Outcomes(NamedTuple):
    """What has become of the images of a call."""

    done: list[Done]
    failed: list[list[str]]
    """Rows of `failed.csv`."""
    left: list[str]
    """Names of those that are neither."""


def read_outcomes(folders: Sequence[Path], jobs: Sequence[Job]) -> Outcomes:
    """Reads the notes of one or several output folders.

    Args:
      folders: output folders; of images that are complete in several of them, the first counts.
      jobs: all images of the call.

    Returns:
      The outcomes, in the order of the images. If images are left, these alone: the notes of others are not read.
    """
    ledgers = {folder: Ledger(folder, ()) for folder in folders}
    # Listing also makes network file systems look again, and tells which notes of a bucket are worth a request.
    notes = {folder: ledger.list_notes() for folder, ledger in ledgers.items()}
    left = [
        job.name
        for job in jobs
        if not any(ledger.is_settled(job.name, notes[folder]) for folder, ledger in ledgers.items())
    ]
    if left:
        return Outcomes([], [], left)

    def outcome_of(job: Job) -> Done | list[str] | None:
        for folder, ledger in ledgers.items():
            row = ledger.read_row(job.name, notes[folder])
            if row is not None:
                return Done(job.name, folder, row)
        failures = (ledger.read_failure(job.name, notes[folder]) for folder, ledger in ledgers.items())
        return next((values for values in failures if values is not None), None)

    found = map_parallel(outcome_of, jobs, is_remote=any(isinstance(folder, Address) for folder in folders))
    return Outcomes(
        [outcome for outcome in found if isinstance(outcome, Done)],
        [outcome for outcome in found if isinstance(outcome, list)],
        [job.name for job, outcome in zip(jobs, found, strict=True) if outcome is None],
    )


def write_tables(out: Path, outputs: Sequence[str], outcomes: Outcomes, reporter: Reporter) -> None:
    """Writes the files about all images.

    Args:
      out: folder for them.
      outputs: keys of `OUTPUTS`, which decide which files there are.
      outcomes: what has become of the images.
      reporter: for warnings.

    Raises:
      OSError: if a file of an image is missing, or one cannot be written.
    """
    done = outcomes.done
    write_text(out / "images.csv", csv_text(IMAGE_COLUMNS, (image.row for image in done)))
    if "nuclei" in outputs:
        files = [as_path(image.row[IMAGE_COLUMNS.index("file")]) for image in done]
        try:
            columns = image_columns(files)
        except DataError as error:
            reporter.warn(f"nuclei.csv does not say which patient each nucleus is from: {error}")
            columns = [{} for _ in files]
        _write_nuclei(out / "nuclei.csv", done, columns)
    if "coco" in outputs:
        _write_coco(out / "coco.json", done)
    if outcomes.failed:
        write_text(out / "failed.csv", csv_text(["file", "reason"], outcomes.failed))
    else:
        (out / "failed.csv").unlink(missing_ok=True)


def merge_folders(folders: Sequence[Path], out: Path, *, reporter: Reporter) -> Outcomes:
    """Writes the files about all images of the shards of a call.

    Args:
      folders: their output folders.
      out: folder for the files.
      reporter: for warnings.

    Returns:
      What has become of the images.

    Raises:
      ConfigError: if a folder holds no results, or the folders are not shards of one call.
      DataError: if an image is neither complete nor has failed, or a file of one is missing.
    """
    found = [_read_notes(folder) for folder in folders]
    settings, jobs = found[0]
    for folder, (other_settings, other_jobs) in zip(folders, found, strict=True):
        differences = [key for key in {**settings, **other_settings} if settings.get(key) != other_settings.get(key)]
        if differences:
            raise ConfigError(f"{folder}: was made with other settings ({', '.join(differences)}) than {folders[0]}")
        if other_jobs != jobs:
            raise ConfigError(
                f"{folder}: its call had other images than that of {folders[0]} ({len(other_jobs)} and {len(jobs)}, or "
                "others); call both again with the same --images and --resume"
            )
    outcomes = read_outcomes(folders, jobs)
    if outcomes.left:
        raise DataError(
            f"{len(outcomes.left)} of {len(jobs)} images have no result yet: {first_few(outcomes.left)}; call their "
            "shards again with --resume"
        )
    try:
        write_tables(make_folder(out), settings["outputs"], outcomes, reporter)
    except FileNotFoundError as error:
        raise DataError(f"{error.filename}: is missing; call its shard again with --resume") from None
    return outcomes


def _read_notes(folder: Path) -> tuple[dict[str, Any], list[Job]]:
    """Returns settings and images of the call that filled a folder."""
    settings, jobs = read_settings(folder), read_plan(folder)
    if not settings or jobs is None or not isinstance(settings.get("outputs"), list):
        raise ConfigError(
            f"{folder}: is not an output folder of infer (no usable {DONE}/{SETTINGS_FILE} and {DONE}/{PLAN_FILE})"
        )
    return {key: value for key, value in settings.items() if key != "owned_outputs"}, jobs


def _write_nuclei(path: Path, done: Sequence[Done], columns: Sequence[Mapping[str, str]]) -> None:
    """Joins the measurements of all images; without images there is no file.

    Args:
      path: the file.
      done: images with the output `nuclei`.
      columns: further columns and their value for all nuclei of each image, such as the patient. A name that a
        measurement has gets the prefix `image_`.
    """
    if not done:
        path.unlink(missing_ok=True)
        return
    further = list(dict.fromkeys(name for row in columns for name in row))

    def read(image: Done) -> tuple[str, str]:
        header, _, rows = read_text(image.folder / "nuclei" / f"{image.name}.csv").partition("\n")
        return header, rows

    def extended(rows: str, known: Mapping[str, str]) -> str:
        values = [known.get(column, "") for column in further]
        return csv_text([], ([*row, *values] for row in csv.reader(io.StringIO(rows, newline=""))))

    header = next(csv.reader([read(done[0])[0]]))
    renamed = [f"image_{column}" if column in header else column for column in further]
    texts = (
        extended(rows, known) if further else rows
        for (_, rows), known in zip(read_ahead(read, done), columns, strict=True)
    )
    write_text(path, itertools.chain([csv_text([*header, *renamed], [])], texts))


def _write_coco(path: Path, done: Sequence[Done]) -> None:
    """Joins the COCO documents of all images."""
    images, annotations = [], []
    documents = read_ahead(lambda image: read_json_object(image.folder / "coco" / f"{image.name}.json"), done)
    for image_id, document in enumerate(documents, start=1):
        images.append({**document["images"][0], "id": image_id})
        for entry in document["annotations"]:
            annotations.append({**entry, "id": len(annotations) + 1, "image_id": image_id})
    write_text(path, coco_document(images, annotations))
