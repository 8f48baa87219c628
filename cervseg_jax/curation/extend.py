"""Adds annotated images to the training split of an existing dataset.

Everything is written into a staging folder first. Once it is complete, a plan says so; then the files are moved,
images last, and the manifest is replaced. A call that was killed is finished by the next one, or its staging folder is
removed.
"""

import fcntl
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from cervseg_jax.annotations.objects import Note, tally
from cervseg_jax.annotations.preannotation import Suggestion, read_suggestions
from cervseg_jax.curation.build import build_source
from cervseg_jax.curation.collect import collect
from cervseg_jax.curation.membership import Member, NewImage, Place, find_places, hashes_of, read_members
from cervseg_jax.curation.recipe import Assignment, Recipe, ScannedImage
from cervseg_jax.curation.reviewed import NO_REVIEW, Review, apply_review
from cervseg_jax.curation.scan import check_labels, scan_image, tell_masks_from_labels
from cervseg_jax.curation.stored import StoredDataset, append_to_manifest, count_splits, read_dataset
from cervseg_jax.data.checks import common_bit_depth
from cervseg_jax.data.decode import read_image
from cervseg_jax.data.manifest import DATASET_FILE, Record, groups_from_csv, read_manifest
from cervseg_jax.data.pairs import stem_of
from cervseg_jax.data.split import groups_by_pattern
from cervseg_jax.errors import ConfigError, DataError, first_few
from cervseg_jax.files import read_json_object, refuse_address, write_json
from cervseg_jax.runtime.threads import map_files

STAGING, PLAN = ".adding", "plan.json"
KINDS = ("labelme", "instances", "masks", "images")
"""Folders of a split, in the order in which files are moved: an image that is seen has all that belongs to it."""

Progress = Callable[[str, int], Any]


class Addition(NamedTuple):
    """Outcome of `add_to_dataset`."""

    records: list[Record]
    """Images that were added."""
    known: list[str]
    """Images that the training split has already."""
    refused: list[str]
    """Messages about images that must not be trained on."""
    problems: list[str]
    """Files and entries that are bad."""
    notes: list[str]


def add_to_dataset(
    source: Path,
    dataset: Path,
    recipe: Recipe,
    *,
    review: Review = NO_REVIEW,
    progress: Progress,
    is_resumed: Callable[[], None],
) -> Addition:
    """Adds the images of a folder to the training split; nothing that the dataset has is changed.

    Args:
      source: annotated images, see `collect`; also a folder of `suggest`.
      dataset: a finished dataset of `prepare`.
      recipe: how to read the source, see `StoredDataset.recipe_for`.
      review: as for `prepare`.
      progress: as for `prepare`.
      is_resumed: called if an interrupted call is finished first.

    Returns:
      What was added, and what was not.

    Raises:
      ConfigError: if `dataset` is no finished dataset of `prepare`, or the source is missing.
      DataError: if files are bad and `recipe.on_bad_file` is "fail".
    """
    refuse_address(dataset)
    source, dataset = source.absolute(), dataset.absolute()
    read_dataset(dataset)
    with _locked(dataset):
        return _add(source, dataset, recipe, review, progress, is_resumed)


@contextmanager
def _locked(dataset: Path) -> Iterator[None]:
    """Locks a dataset against a second call; the lock ends with the process.

    Raises:
      ConfigError: if another process holds the lock.
    """
    folder = os.open(dataset, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise ConfigError(f"{dataset}: another process is adding images to it") from None
    finally:
        os.close(folder)


def _add(
    source: Path, dataset: Path, recipe: Recipe, review: Review, progress: Progress, is_resumed: Callable[[], None]
) -> Addition:
    """Adds the images; see `add_to_dataset`."""
    if finish_addition(dataset):
        is_resumed()
    stored = read_dataset(dataset)
    recipe = stored.recipe_for(recipe)
    suggestions = read_suggestions(source)
    images, problems, _ = collect(source, kind=recipe.annotations)
    problems = [text for text in problems if not _is_left_undone(text, suggestions)]
    images, notes = apply_review(images, suggestions, review)
    with progress("reading", len(images)) as advance:
        scanned = map_files(lambda item: scan_image(item, recipe), images, on_progress=advance, problems=problems)
    problems += [problem for entry in scanned for problem in entry.problems]
    if problems and recipe.on_bad_file == "fail":
        listed = first_few(problems, "\n  ")
        raise DataError(f"{len(problems)} files or entries cannot be used, and nothing was added:\n  {listed}")
    notes += check_labels(scanned, recipe.labels) if scanned else []
    scanned, _ = tell_masks_from_labels(scanned, recipe)
    with progress("comparing", len(read_manifest(dataset / "manifest.csv"))) as advance:
        members = read_members(dataset, on_progress=advance)
    places = find_places(_new_images(scanned, recipe, suggestions), members)
    taken, known, refused = [], [], []
    for entry, place in zip(scanned, places, strict=True):
        if place.reason is not None:
            refused.append(f"{entry.item.image_path}: {place.reason}; it is not added")
        elif place.copy is not None:
            known.append(entry.item.stem)
        else:
            taken.append((entry, place))
    recipe = recipe._replace(bit_depth=common_bit_depth([entry.bits for entry in scanned], recipe.bit_depth))
    records, build_notes = _stage(_with_free_stems(taken, members), stored, recipe, source, progress)
    finish_addition(dataset)
    return Addition(records, known, refused, problems, notes + build_notes)


def _is_left_undone(problem: str, suggestions: Mapping[str, Suggestion]) -> bool:
    """Whether a problem is a suggested image whose annotation was deleted: it is not wanted."""
    path, _, message = problem.partition(": ")
    return message == "has no annotation" and stem_of(Path(path)) in suggestions


def _new_images(
    scanned: Sequence[ScannedImage], recipe: Recipe, suggestions: Mapping[str, Suggestion]
) -> list[NewImage]:
    """Describes the images by what they may share with the dataset."""
    found = [suggestions.get(entry.item.stem) for entry in scanned]
    names = [entry.item.source_stem or entry.item.stem for entry in scanned]
    if recipe.groups_csv is not None:
        groups = [row["group"] for row in groups_from_csv(names, recipe.groups_csv)]
    else:
        groups = groups_by_pattern(names, recipe.group_pattern, key="--group-pattern")
    return [
        NewImage(
            group,
            frozenset({entry.sha256} if suggestion is None else {entry.sha256, suggestion.source_sha256}),
            hashes_of(read_image(entry.item.image_path, bit_depth=recipe.bit_depth), recipe.geometry),
        )
        for entry, group, suggestion in zip(scanned, groups, found, strict=True)
    ]


def _with_free_stems(
    taken: Sequence[tuple[ScannedImage, Place]], members: Collection[Member]
) -> list[tuple[ScannedImage, Place]]:
    """Renames images whose stem is taken in the dataset, by the first digits of their hash."""
    used = {member.stem for member in members}
    renamed = []
    for entry, place in taken:
        stem = entry.item.stem
        if any(name == stem or name.startswith(f"{stem}_r") or name.startswith(f"{stem}_v") for name in used):
            stem = f"{stem}_{entry.sha256[:8]}"
        renamed.append((entry._replace(item=entry.item._replace(stem=stem)), place))
    return renamed


def _stage(
    taken: Sequence[tuple[ScannedImage, Place]],
    stored: StoredDataset,
    recipe: Recipe,
    source: Path,
    progress: Progress,
) -> tuple[list[Record], list[str]]:
    """Writes the files of all images into the staging folder, and last the plan."""
    if not taken:
        return [], []
    staging = stored.folder / STAGING
    shutil.rmtree(staging, ignore_errors=True)  # our own, of a call that did not come to its plan

    def build(item: tuple[ScannedImage, Place]) -> tuple[list[Record], list[Note]]:
        entry, place = item
        return build_source(entry, Assignment("train", place.group, -1), stored.source, staging, recipe)

    with progress("preparing", len(taken)) as advance:
        built = map_files(build, taken, on_progress=advance)
    records = sorted((record for own, _ in built for record in own), key=lambda record: record.stem)
    additions = [*stored.metadata.get("additions", []), {"source": str(source), "images": len(records)}]
    metadata = stored.metadata | {"additions": additions}
    write_json(staging / PLAN, {"records": [record._asdict() for record in records], "dataset": metadata})
    return records, [str(note) for note in tally(note for _, several in built for note in several)]


def finish_addition(dataset: Path) -> bool:
    """Moves staged files into the dataset and lists them in the manifest, if there is a plan; removes the staging.

    Args:
      dataset: folder of the dataset.

    Returns:
      Whether there was a plan.

    Raises:
      ConfigError: if the dataset has got a file of the same name since.
    """
    staging = dataset / STAGING
    if not (staging / PLAN).is_file():
        shutil.rmtree(staging, ignore_errors=True)
        return False
    plan = read_json_object(staging / PLAN)
    for kind in KINDS:
        folder = staging / "train" / kind
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            target = dataset / "train" / kind / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.exists():
                raise ConfigError(f"{target}: exists already; move it, and run the command again")
            os.rename(path, target)
    append_to_manifest(dataset / "manifest.csv", [Record(**record) for record in plan["records"]])
    counts = count_splits(dataset / "manifest.csv")
    write_json(dataset / DATASET_FILE, plan["dataset"] | {"images": counts})
    (staging / PLAN).unlink()
    shutil.rmtree(staging, ignore_errors=True)
    return True
