"""Conversion of annotated images in any layout into a dataset for training.

Groups (sources) are split before anything else is done, near-duplicates stay together, and test splits of the authors
stay test splits. Nuclei keep their full outlines: where two overlap, the label map shows the smaller one, and the
LabelMe file of each image keeps both, as do the label maps in `covered`.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cervseg_jax.annotations.objects import Note, tally
from cervseg_jax.annotations.preannotation import read_suggestions
from cervseg_jax.curation.build import build_source, relative_path
from cervseg_jax.curation.collect import collect, files_left_out
from cervseg_jax.curation.recipe import Assignment, Recipe, ScannedImage
from cervseg_jax.curation.reviewed import NO_REVIEW, Review, apply_review
from cervseg_jax.curation.scan import check_labels, scan_image, tell_masks_from_labels
from cervseg_jax.curation.similarity import describe_joins, join_groups, near_pairs
from cervseg_jax.curation.workspace import Workspace
from cervseg_jax.data.checks import bit_depth_warning, common_bit_depth
from cervseg_jax.data.manifest import DATASET_FILE, Record, groups_from_csv, write_manifest
from cervseg_jax.data.split import assign_folds, groups_by_pattern, split_groups
from cervseg_jax.errors import ConfigError, DataError, first_few
from cervseg_jax.extents import Z_ORDER
from cervseg_jax.files import refuse_address, write_json
from cervseg_jax.runtime.threads import map_files
from cervseg_jax.storage.address import as_path


class Prepared(NamedTuple):
    """Result of `prepare`."""

    records: list[Record]
    problems: list[str]
    """Files and entries that were left out because they are bad."""
    notes: list[str]
    """Warnings about annotations that were left out or read differently."""
    remarks: list[str]
    """Choices among several readings of the source."""


def prepare(
    source: Path,
    out: Path,
    recipe: Recipe,
    *,
    progress: Callable[[str, int], Any],
    is_resumed: Callable[[], None],
    summarize: Callable[[], object] = lambda: None,
    review: Review = NO_REVIEW,
) -> Prepared:
    """Makes a dataset, or continues an interrupted call.

    All images and annotations are read once before anything is written, so that bad files are reported together.

    Args:
      source: see `collect`.
      out: a new folder, or one that an interrupted call with the same recipe left.
      recipe: settings.
      progress: `progress(title, total)` is a context manager that yields a function to call after each image.
      is_resumed: called if earlier work is continued.
      summarize: called when all files are written; a call that is killed before its end repeats it.
      review: rejected images and nuclei, and pre-annotations that nobody has looked at, are left out.

    Returns:
      The records of all files, what was left out, warnings and remarks.

    Raises:
      ConfigError: if `out` holds something else, a setting is wrong, or no nucleus has a label of the recipe.
      DataError: if files are bad and `recipe.on_bad_file` is "fail", or none is good.
    """
    refuse_address(out)
    source, out = as_path(source).absolute(), out.absolute()
    if out == source or source.is_relative_to(out):
        raise ConfigError(f"--out: {out} holds the source; the dataset needs a folder of its own")
    workspace = Workspace(out, _metadata(source, recipe))
    is_continued = workspace.is_begun()
    images, problems, remarks = collect(source, kind=recipe.annotations)
    images, left_out = apply_review(images, read_suggestions(source), review)
    with progress("reading", len(images)) as advance:
        scanned = map_files(lambda item: scan_image(item, recipe), images, on_progress=advance, problems=problems)
    problems += [problem for entry in scanned for problem in entry.problems]
    if problems and (recipe.on_bad_file == "fail" or not scanned):
        raise DataError(_problems_message(problems))
    bits = [entry.bits for entry in scanned]
    depth = common_bit_depth(bits, recipe.bit_depth)
    narrow = bit_depth_warning(bits, depth, option="--bit-depth ")
    notes = [*([narrow] if narrow else []), *check_labels(scanned, recipe.labels)]
    scanned, found_masks = tell_masks_from_labels(scanned, recipe)
    assigned = assign_splits(scanned, recipe)
    if is_continued:
        is_resumed()
    workspace.begin({entry.item.stem: (entry, assigned[entry.item.stem]) for entry in scanned})

    def build(entry: ScannedImage) -> tuple[list[Record], list[Note]]:
        stored = workspace.load(entry.item.stem)
        if stored is None:
            stored = build_source(entry, assigned[entry.item.stem], source, out, recipe._replace(bit_depth=depth))
            workspace.save(entry.item.stem, *stored)
        return stored

    with progress("preparing", len(scanned)) as advance:
        built = map_files(build, scanned, on_progress=advance, problems=problems)
    if problems and recipe.on_bad_file == "fail":
        raise DataError(_problems_message(problems))
    records = sorted((record for records, _ in built for record in records), key=lambda r: (r.split, r.stem))
    build_notes = [str(note) for note in tally(note for _, several in built for note in several)]
    _require_nuclei(records, scanned, build_notes)
    write_manifest(out / "manifest.csv", records, _patient_columns(scanned, source, recipe))
    counts = Counter(record.split for record in records)
    finished = workspace.metadata | {"state": "finished", "images": dict(sorted(counts.items()))}
    write_json(out / DATASET_FILE, finished)
    summarize()
    workspace.finish()
    notes += [*left_out, *files_left_out(images), *build_notes]
    if not any(record.foreground for record in records):
        notes.append("no image has a nucleus")
    return Prepared(records, problems, notes, remarks + found_masks)


def _require_nuclei(records: Sequence[Record], scanned: Sequence[ScannedImage], notes: Sequence[str]) -> None:
    num_annotated = sum(sum(entry.label_counts.values()) for entry in scanned)
    if num_annotated and not any(record.foreground for record in records):
        listed = first_few(notes, "\n  ")
        raise DataError(f"none of the {num_annotated} annotated nuclei covers a pixel of its image:\n  {listed}")


def count_nuclei(records: Sequence[Record]) -> str:
    """Returns the number of nuclei in images whose annotation tells touching nuclei apart, in words."""
    known = [record.num_nuclei for record in records if record.num_nuclei >= 0]
    if not known:
        return "nuclei not counted (masks do not separate them)"
    rest = len(records) - len(known)
    return f"{sum(known)} nuclei" + (f" (not counted in {rest} images with masks only)" if rest else "")


def assign_splits(scanned: Sequence[ScannedImage], recipe: Recipe) -> dict[str, Assignment]:
    """Assigns every image to train, valid or test, whole groups at a time.

    Args:
      scanned: the images.
      recipe: shares, seed, and the definition of groups.

    Returns:
      Split, group and fold by stem.

    Raises:
      ConfigError: if the groups cannot be read.
      DataError: if there are too few of them.
    """
    stems = [entry.item.stem for entry in scanned]
    sources = [entry.item.source_stem or entry.item.stem for entry in scanned]
    if recipe.groups_csv is not None:
        names = [row["group"] for row in groups_from_csv(sources, recipe.groups_csv)]
    else:
        names = groups_by_pattern(sources, recipe.group_pattern, key="--group-pattern")
    joined = ""
    if recipe.keep_near_duplicates_together:
        alike = near_pairs(np.stack([entry.hashes for entry in scanned]))
        names = join_groups(names, alike)
        joined = describe_joins(stems, alike, names)
    given_test = {name for name, entry in zip(names, scanned, strict=True) if entry.item.is_test}
    rest = sorted(set(names) - given_test)
    try:
        splits = dict.fromkeys(given_test, "test")
        splits |= split_groups(
            rest,
            valid=0.0 if recipe.folds else recipe.valid,
            test=0.0 if given_test and recipe.test < 1.0 else recipe.test,
            seed=recipe.seed,
        )
        folds = dict.fromkeys(names, -1)
        if recipe.folds:
            folds |= assign_folds([name for name in rest if splits[name] != "test"], recipe.folds, seed=recipe.seed)
            splits |= {name: "valid" for name, fold in folds.items() if fold == recipe.fold}
    except ValueError as error:
        advice = f"\n{joined}; --near-duplicates apart counts them as separate sources" if joined else ""
        raise DataError(
            f"{error}; a group is a source image, or what --group-pattern or --groups define{advice}"
        ) from None
    return {stem: Assignment(splits[name], name, folds[name]) for stem, name in zip(stems, names, strict=True)}


def _patient_columns(seen: Sequence[ScannedImage], source: Path, recipe: Recipe) -> dict[str, dict[str, str]]:
    """Returns the columns of the groups' table by path of the source image."""
    if recipe.groups_csv is None:
        return {}
    rows = groups_from_csv([entry.item.stem for entry in seen], recipe.groups_csv)
    return {relative_path(entry.item.image_path, source): row for entry, row in zip(seen, rows, strict=True)}


def _metadata(source: Path, recipe: Recipe) -> dict[str, Any]:
    settings: dict[str, Any] = recipe._asdict()
    settings["geometry"] = recipe.geometry._asdict()
    settings["groups_csv"] = None if recipe.groups_csv is None else str(recipe.groups_csv)
    metadata: Mapping[str, Any] = {"kind": "prepared", "source": str(source), "recipe": settings, "z_order": Z_ORDER}
    return json.loads(json.dumps(metadata))


def group_problems(problems: Sequence[str]) -> list[str]:
    """Merges messages that differ in file and entry only.

    Example:
      >>> group_problems(["a.json: shape 1: is not an object", "b.json: shape 7: is not an object"])
      ['is not an object (2 times, first in a.json: shape 1)']
    """
    split = [_ENTRY.fullmatch(problem) for problem in sorted(problems)]
    notes = [Note(match["message"], match["subject"]) for match in split if match is not None]
    return [str(note) for note in tally(notes)]


_ENTRY = re.compile(r"(?P<subject>.*?(?:: (?:shape|feature|annotation) [^:]*)?): (?P<message>.*)", re.DOTALL)
"""File, entry and what is wrong with it."""


def _problems_message(problems: Sequence[str]) -> str:
    advice = "repair or remove them, or leave them out with --on-bad-file skip"
    listed = first_few(group_problems(problems), "\n  ")
    return f"{len(problems)} files or entries cannot be used; {advice}:\n  {listed}"
