"""From annotated images in any layout to a dataset that training can trust.

Groups (sources) are divided before anything else; near-duplicates stay together; the makers' test parts stay test.
Nuclei keep their full outlines: the label map shows the smaller one where two overlap, and the LabelMe file of each
image keeps both whole.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cervseg_jax import __version__
from cervseg_jax.curation.build import build_source
from cervseg_jax.curation.collect import SourceImage, collect
from cervseg_jax.curation.recipe import Part, Recipe, ScannedImage
from cervseg_jax.curation.similarity import join_groups, near_pairs, perceptual_hash
from cervseg_jax.data.decode import decode_image, read_bytes
from cervseg_jax.data.manifest import Record, groups_from_csv, write_manifest
from cervseg_jax.data.split import assign_folds, groups_by_pattern, split_groups
from cervseg_jax.errors import ConfigError, DataError, first_few
from cervseg_jax.files import make_folder, refuse_filled_folder, sha256_of, write_json, write_text
from cervseg_jax.runtime.threads import default_threads

DATASET_FILE = "dataset.json"
RECORDS, PLAN = ".records", "plan"
Z_ORDER = "smaller nuclei lie on top of larger ones"


class Prepared(NamedTuple):
    """What `prepare` made."""

    records: list[Record]
    problems: list[str]
    notes: list[str]


def prepare(
    source: Path, out: Path, recipe: Recipe, *, progress: Callable[[str, int], Any], is_resumed: Callable[[], None]
) -> Prepared:
    """Makes a dataset; an interrupted call goes on where it stopped.

    Args:
      source: see `collect`.
      out: a new folder, or one that an interrupted call with the same recipe left.
      recipe: what to do.
      progress: `progress(title, total)` is a context manager that yields a function to call after each image.
      is_resumed: called if earlier work is taken over.

    Returns:
      The records of all files, bad files that were left out, and remarks on annotations.

    Raises:
      ConfigError: if `out` holds something else, or a setting is wrong.
      DataError: if files are bad and `recipe.on_bad_file` is "fail".
    """
    source, out = source.absolute(), out.absolute()
    if out == source or source.is_relative_to(out):
        raise ConfigError(f"--out: {out} holds the source; the dataset needs a folder of its own")
    facts = _facts(source, recipe)
    items, problems = collect(source)
    _claim(out, facts, is_resumed)
    with progress("looking at images", len(items)) as advance:
        seen = _for_all(lambda item: _look(item), items, advance, problems)
    if problems and recipe.on_bad_file == "fail":
        raise DataError(_several(problems))
    parts = divide(seen, recipe)
    _check_plan(out, seen, parts)
    notes: list[str] = []

    def build(entry: ScannedImage) -> list[Record]:
        done = out / RECORDS / f"{entry.item.stem}.json"
        if done.exists():
            stored = json.loads(done.read_text())
        else:
            records, remarks = build_source(entry, parts[entry.item.stem], source, out, recipe)
            stored = {"records": [record._asdict() for record in records], "notes": remarks}
            write_json(done, stored)
        notes.extend(stored["notes"])
        return [Record(**record) for record in stored["records"]]

    with progress("preparing", len(seen)) as advance:
        built = _for_all(build, seen, advance, problems)
    if problems and recipe.on_bad_file == "fail":
        raise DataError(_several(problems))
    records = sorted(
        (record for several in built for record in several), key=lambda record: (record.split, record.stem)
    )
    write_manifest(out / "manifest.csv", records, _patient_columns(seen, source, recipe))
    counts = Counter(record.split for record in records)
    write_json(out / DATASET_FILE, facts | {"state": "finished", "images": dict(sorted(counts.items()))})
    for path in (out / RECORDS).iterdir():
        path.unlink()
    (out / RECORDS).rmdir()
    return Prepared(records, problems, sorted(notes))


def divide(seen: Sequence[ScannedImage], recipe: Recipe) -> dict[str, Part]:
    """Assigns every image to train, valid or test, whole groups at a time.

    Args:
      seen: the images.
      recipe: shares, seed, and what a group is.

    Returns:
      Split and group by stem.

    Raises:
      ConfigError: if the groups cannot be read.
      DataError: if there are too few of them.
    """
    stems = [entry.item.stem for entry in seen]
    if recipe.groups_csv is not None:
        names = [row["group"] for row in groups_from_csv(stems, recipe.groups_csv)]
    else:
        names = groups_by_pattern(stems, recipe.group_pattern, key="--group-pattern")
    if recipe.keep_near_duplicates_together:
        names = join_groups(names, near_pairs(np.stack([entry.hashes for entry in seen])))
    official = {name for name, entry in zip(names, seen, strict=True) if entry.item.is_test}
    rest = sorted(set(names) - official)
    try:
        parts = dict.fromkeys(official, "test")
        parts |= split_groups(
            rest, valid=0.0 if recipe.folds else recipe.valid, test=0.0 if official else recipe.test, seed=recipe.seed
        )
        folds = dict.fromkeys(names, -1)
        if recipe.folds:
            folds |= assign_folds([name for name in rest if parts[name] != "test"], recipe.folds, seed=recipe.seed)
            parts |= {name: "valid" for name, fold in folds.items() if fold == recipe.fold}
    except ValueError as error:
        raise DataError(f"{error}; a group is a source image, or what --group-pattern or --groups says") from None
    return {entry.item.stem: Part(parts[name], name, folds[name]) for entry, name in zip(seen, names, strict=True)}


def _patient_columns(seen: Sequence[ScannedImage], source: Path, recipe: Recipe) -> dict[str, dict[str, str]]:
    """Returns the columns of the groups' table by path of the source image."""
    if recipe.groups_csv is None:
        return {}
    rows = groups_from_csv([entry.item.stem for entry in seen], recipe.groups_csv)
    return {str(entry.item.image_path.relative_to(source)): row for entry, row in zip(seen, rows, strict=True)}


def _look(item: SourceImage) -> ScannedImage:
    data = read_bytes(item.image_path)
    image = decode_image(data, source=item.image_path)
    return ScannedImage(item, image.shape[:2], sha256_of(data), perceptual_hash(image))


def _for_all(
    work: Callable[[Any], Any], entries: Sequence[Any], on_progress: Callable[[], None], problems: list[str]
) -> list:
    """Runs `work` on all cores; bad files become problems and are missing from the result."""

    def guarded(entry: Any) -> Any:
        try:
            return work(entry)
        except DataError as error:
            problems.append(str(error))
            return None
        finally:
            on_progress()

    with ThreadPoolExecutor(default_threads()) as pool:
        return [result for result in pool.map(guarded, entries) if result is not None]


def _facts(source: Path, recipe: Recipe) -> dict[str, Any]:
    settings: dict[str, Any] = recipe._asdict()
    settings["geometry"] = recipe.geometry._asdict()
    settings["groups_csv"] = None if recipe.groups_csv is None else str(recipe.groups_csv)
    return json.loads(json.dumps({"kind": "prepared", "source": str(source), "recipe": settings, "z_order": Z_ORDER}))


def _claim(out: Path, facts: Mapping[str, Any], is_resumed: Callable[[], None]) -> None:
    """Makes the folder ours, or checks that it is."""
    path = out / DATASET_FILE
    if path.exists():
        try:
            found = json.loads(path.read_text())
        except (OSError, ValueError):
            raise ConfigError(f"--out: {path} is damaged; choose another folder") from None
        if any(found.get(key) != value for key, value in facts.items()):
            raise ConfigError(f"--out: {out} holds another dataset (see its {DATASET_FILE}); choose another folder")
        if found.get("state") == "finished":
            raise ConfigError(f"--out: {out} holds this very dataset, finished; nothing was done")
        is_resumed()
        return
    refuse_filled_folder(out, shown=f"--out: {out}")
    make_folder(out)
    write_json(path, {**facts, "version": __version__, "state": "building"})


def _check_plan(out: Path, seen: Sequence[ScannedImage], parts: Mapping[str, Part]) -> None:
    """Makes sure that files of an earlier, interrupted call still belong where they were put.

    Raises:
      ConfigError: if the source has changed since, so that images may have moved to other parts.
    """
    plan = {entry.item.stem: [*parts[entry.item.stem], entry.sha256] for entry in seen}
    digest = sha256_of(json.dumps(plan, sort_keys=True).encode())
    path = make_folder(out / RECORDS) / PLAN
    if path.exists() and path.read_text() != digest:
        raise ConfigError(
            f"--out: {out} was begun with other source files, which may lie in other parts now; choose another folder"
        )
    write_text(path, digest)


def _several(problems: Sequence[str]) -> str:
    advice = "repair or remove them, or leave them out with --on-bad-file skip"
    return f"{len(problems)} files cannot be used; {advice}:\n  " + first_few(sorted(problems), "\n  ")
