"""From annotated images in any layout to a dataset that training can trust.

Groups (sources) are divided before anything else; near-duplicates stay together; the makers' test parts stay test.
Nuclei keep their full outlines: the label map shows the smaller one where two overlap, and the LabelMe file of each
image keeps both whole.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from cervseg_jax import __version__
from cervseg_jax.data.collect import Item, Truth, collect, read_truth
from cervseg_jax.data.decode import MaskRule, read_bytes, read_image
from cervseg_jax.data.geometry import Geometry, Piece, pieces
from cervseg_jax.data.labelme import labelme_document
from cervseg_jax.data.manifest import Record, groups_from_csv, write_manifest
from cervseg_jax.data.outlines import Rings, draw_instances, enclosed_area, from_pixel_centres
from cervseg_jax.data.similarity import join_groups, near_pairs, perceptual_hash
from cervseg_jax.data.split import assign_folds, groups_by_pattern, split_groups
from cervseg_jax.errors import ConfigError, DataError
from cervseg_jax.files import make_folder, sha256_of, write_json, write_png, write_text

DATASET_FILE = "dataset.json"
RECORDS = ".records"
Z_ORDER = "smaller nuclei lie on top of larger ones"


class Recipe(NamedTuple):
    """Everything that decides what a dataset becomes, apart from its source."""

    geometry: Geometry = Geometry()
    labels: tuple[str, ...] = ()
    """Annotations with other labels are left out; empty keeps all."""
    outlines: Literal["drawn", "traced"] = "drawn"
    """Whether coordinates are positions in the image, or name pixels on the border (`from_pixel_centres`)."""
    mask_rule: MaskRule = "half_range"
    valid: float = 0.15
    test: float = 0.15
    """Share of the groups that becomes test, where the makers have no test part."""
    seed: int = 0
    group_pattern: str | None = None
    groups_csv: Path | None = None
    folds: int = 0
    """Number of parts for cross-validation; 0 for none."""
    fold: int = 0
    """The part that is valid."""
    keep_near_duplicates_together: bool = True
    on_bad_file: str = "fail"


class Prepared(NamedTuple):
    """What `prepare` made."""

    records: list[Record]
    problems: list[str]
    notes: list[str]


class Seen(NamedTuple):
    """What a first look at an image showed."""

    item: Item
    size: tuple[int, int]
    sha256: str
    hashes: np.ndarray


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
    _claim(out, facts, is_resumed)
    items, problems = collect(source)
    with progress("looking at images", len(items)) as advance:
        seen = _for_all(lambda item: _look(item), items, advance, problems)
    if problems and recipe.on_bad_file == "fail":
        raise DataError(_several(problems))
    parts = divide(seen, recipe)
    make_folder(out / RECORDS)
    notes: list[str] = []

    def build(entry: Seen) -> list[Record]:
        done = out / RECORDS / f"{entry.item.stem}.json"
        if done.exists():
            stored = json.loads(done.read_text())
        else:
            records, remarks = _build(entry, parts[entry.item.stem], source, out, recipe)
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
    write_manifest(out / "manifest.csv", records)
    counts = Counter(record.split for record in records)
    write_json(out / DATASET_FILE, facts | {"state": "finished", "images": dict(sorted(counts.items()))})
    for path in (out / RECORDS).iterdir():
        path.unlink()
    (out / RECORDS).rmdir()
    return Prepared(records, problems, sorted(notes))


class Part(NamedTuple):
    """Where an image goes."""

    split: str
    group: str
    fold: int
    """Part for cross-validation, or -1 for test images and where there are no folds."""


def divide(seen: Sequence[Seen], recipe: Recipe) -> dict[str, Part]:
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
        names = groups_from_csv(stems, recipe.groups_csv)
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


def _look(item: Item) -> Seen:
    image = read_image(item.image_path)
    return Seen(item, image.shape[:2], sha256_of(read_bytes(item.image_path)), perceptual_hash(image))


def _build(entry: Seen, part: Part, source: Path, out: Path, recipe: Recipe) -> tuple[list[Record], list[str]]:
    """Writes the files of one source image."""
    item = entry.item
    image, truth = read_image(item.image_path), read_truth(item, mask_rule=recipe.mask_rule)
    _check_size(item, truth, image.shape[:2])
    notes = list(truth.notes)
    outlines = None if truth.nuclei is None else _kept_outlines(item, truth, image.shape[:2], recipe, notes)
    records = []
    for piece in pieces(image, truth.labels, recipe.geometry):
        stem = item.stem + piece.suffix
        labels, moved = _instances(piece, outlines)
        folder = out / part.split
        for name in ("images", "masks", *(("instances",) if truth.separates else ())):
            make_folder(folder / name)
        write_png(folder / "images" / f"{stem}.png", piece.image)
        write_png(folder / "masks" / f"{stem}.png", ((labels > 0) * 255).astype(np.uint8))
        if truth.separates:
            _write_instances(folder / "instances" / f"{stem}.png", labels)
        if moved is not None:
            make_folder(folder / "labelme")
            document = labelme_document(moved, image_path=f"../images/{stem}.png", shape=labels.shape)
            write_text(folder / "labelme" / f"{stem}.json", document)
        records.append(
            Record(
                split=part.split,
                stem=stem,
                group=part.group,
                fold=part.fold,
                subset=item.subset,
                source_path=str(item.image_path.relative_to(source)),
                annotation_path=str(item.annotation_path.relative_to(source)),
                source_height=entry.size[0],
                source_width=entry.size[1],
                height=labels.shape[0],
                width=labels.shape[1],
                transform=str(piece.transform),
                num_nuclei=len(np.unique(labels[labels > 0])) if truth.separates else -1,
                foreground=round(float((labels > 0).mean()), 6),
                source_sha256=entry.sha256,
                image_sha256=sha256_of(read_bytes(folder / "images" / f"{stem}.png")),
            )
        )
    return records, notes


def _check_size(item: Item, truth: Truth, size: tuple[int, int]) -> None:
    stated = truth.claimed_size if truth.labels is None else truth.labels.shape
    if stated is not None and tuple(stated) != tuple(size):
        raise DataError(
            f"{item.annotation_path}: is for an image of {stated[1]}x{stated[0]}, "
            f"{item.image_path.name} is {size[1]}x{size[0]} (turned upright by its EXIF tag)"
        )


def _kept_outlines(item: Item, truth: Truth, size: tuple[int, int], recipe: Recipe, notes: list[str]) -> list[Rings]:
    """Filters by label, drops what has no area inside the image, and orders large to small."""
    kept = []
    whole = bool(truth.nuclei)
    for number, nucleus in enumerate(truth.nuclei or [], start=1):
        name = f"{item.annotation_path}: nucleus {number}"
        if recipe.labels and nucleus.label not in recipe.labels:
            continue
        rings = nucleus.rings
        points = np.concatenate(list(rings))
        whole = whole and bool((points == np.rint(points)).all())
        if (points.max(axis=0) <= 0).any() or (points.min(axis=0) >= (size[1], size[0])).any():
            notes.append(f"{name}: lies outside the image and is left out")
            continue
        if recipe.outlines == "traced":
            rings = [edge for ring in rings for edge in from_pixel_centres(ring)]
        if enclosed_area(rings) == 0:
            notes.append(f"{name}: has no area and is left out")
        else:
            kept.append(rings)
    if whole and recipe.outlines == "drawn" and item.kind in ("labelme", "geojson"):
        notes.append(
            f"{item.annotation_path}: all coordinates are whole numbers; if a program traced them along pixel "
            "centres, --outlines traced gives back the half pixel all round that is missing"
        )
    return sorted(kept, key=enclosed_area, reverse=True)


def _instances(piece: Piece, outlines: Sequence[Rings] | None) -> tuple[np.ndarray, list[Rings] | None]:
    """Returns the piece's label map with the numbers 1, 2, 3 ..., and its outlines at full extent."""
    if outlines is None:
        labels = np.zeros(piece.image.shape[:2], np.int32) if piece.labels is None else piece.labels
        return np.unique(labels, return_inverse=True)[1].reshape(labels.shape) if labels.any() else labels, None
    moved = [piece.transform.apply(rings) for rings in outlines]
    shape = piece.image.shape[:2]
    inside = [
        rings
        for rings in moved
        if (np.concatenate(rings).max(axis=0) > 0).all()
        and (np.concatenate(rings).min(axis=0) < (shape[1], shape[0])).all()
    ]
    return draw_instances(inside, shape=shape), inside


def _write_instances(path: Path, labels: np.ndarray) -> None:
    if labels.max() > 65535:
        raise DataError(f"{path.name}: has {labels.max()} nuclei, more than a 16-bit label file can hold; use --tile")
    write_png(path, labels.astype(np.uint16))


def _for_all(work: Callable[[Any], Any], entries: Sequence[Any], each: Callable[[], None], problems: list[str]) -> list:
    """Runs `work` on all cores; bad files become problems and are missing from the result."""

    def guarded(entry: Any) -> Any:
        try:
            return work(entry)
        except DataError as error:
            problems.append(str(error))
            return None
        finally:
            each()

    with ThreadPoolExecutor(os.cpu_count()) as pool:
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
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out: {out} is there already and not an empty folder; choose another one")
    make_folder(out)
    write_json(path, {**facts, "version": __version__, "state": "building"})


def _several(problems: Sequence[str], limit: int = 10) -> str:
    listed = sorted(problems)
    more = f"\n  and {len(listed) - limit} more" if len(listed) > limit else ""
    advice = "repair or remove them, or leave them out with --on-bad-file skip"
    return f"{len(listed)} files cannot be used; {advice}:\n  " + "\n  ".join(listed[:limit]) + more
