"""Discovery of images and their annotations in the layouts that datasets come in."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from cervseg_jax.annotations.coco import is_coco, read_coco
from cervseg_jax.annotations.decisions import Point
from cervseg_jax.annotations.objects import Annotation, parse_json
from cervseg_jax.annotations.preannotation import SUGGESTIONS
from cervseg_jax.choices import AnnotationKind
from cervseg_jax.curation.pairing import (
    GEOJSON_SUFFIXES,
    JSON_SUFFIXES,
    annotation_files,
    pair_by_stem,
    pair_named_images,
)
from cervseg_jax.data.decode import read_bytes
from cervseg_jax.data.pairs import images_by_stem, list_images, normalized, scan_folder, stem_of
from cervseg_jax.errors import ConfigError, DataError, first_few
from cervseg_jax.storage.address import as_path

CLUSTERED_SUBSETS = ("difficult", "normal", "sample", "test-difficult", "test-normal", "test-sample")
PATCH_SUBSETS = ("train", "test")
SIDE_FOLDERS: dict[AnnotationKind, frozenset[str] | None] = {
    "labelme": JSON_SUFFIXES,
    "geojson": JSON_SUFFIXES,
    "instances": None,
    "labels": None,
    "masks": None,
}
"""Folders beside `images` in the order of preference, with the suffixes of their files; None: images."""


class SourceImage(NamedTuple):
    """An image of the source and the place of its annotation."""

    stem: str
    """Unique within the dataset; in Unicode's composed form (NFC)."""
    image_path: Path
    subset: str
    """Folder of the source that the image comes from, such as "difficult"; empty if there is only one."""
    is_test: bool
    """Whether the authors of the dataset put the image into their test split."""
    kind: AnnotationKind
    annotation_path: Path
    annotation: Annotation | None = None
    """Already read, for formats that keep all images in one file."""
    rejected: tuple[Point, ...] = ()
    """Points of nuclei that a person has rejected."""
    source_stem: str = ""
    """Stem of the image that this one was cut from; empty for a whole image."""


class Collected(NamedTuple):
    """Images of a source."""

    images: list[SourceImage]
    problems: list[str]
    """Files without a partner, and entries that belong to no image."""
    remarks: list[str]
    """Which of several kinds of annotations was taken."""


class _Layout(NamedTuple):
    """One way in which the source can be read."""

    kind: AnnotationKind
    where: str
    find: Callable[[], tuple[list[SourceImage], list[str]]]


def collect(source: Path, *, kind: AnnotationKind | None = None) -> Collected:
    """Lists the images of a dataset in any supported layout.

    Supported are CNSeg's clusteredCell and PatchSeg folders by name; `images` beside `labelme`, `geojson`, `instances`,
    `labels` or `masks`; images beside LabelMe JSON or GeoJSON files of the same stem; one COCO JSON; and a folder of
    JSON files alone, whose images are found by `imagePath` or in `../images`.

    Args:
      source: the folder.
      kind: annotations to take where there are several kinds; default: the first of the list above.

    Returns:
      Images sorted by stem, messages for files without a partner, and remarks.

    Raises:
      ConfigError: if the folder does not exist, its layout is not supported, or `kind` is not in it.
      DataError: if names are ambiguous.
    """
    source = as_path(source)
    if source.is_file():
        raise ConfigError(f"{source}: is a file; the folder with images and annotations is needed")
    if not source.is_dir():
        raise ConfigError(f"{source}: no such folder")
    layouts = [*_cnseg(source), *_side_folders(source), *_coco(source), *_same_folder(source), *_alone(source)]
    chosen = [layout for layout in layouts if kind in (None, layout.kind)]
    if layouts and not chosen:
        kinds = ", ".join(layout.kind for layout in layouts)
        raise ConfigError(f"--annotations: {source} has no {kind}; there are: {kinds}")
    problems: list[str] = []
    for layout in chosen:
        images, found = layout.find()
        problems += found
        if images:
            others = [f"{other.kind} ({other.where})" for other in layouts if other.kind != layout.kind]
            remark = f"annotations: {layout.kind} ({layout.where}); also there: {', '.join(others)}; see --annotations"
            return Collected(_with_unique_stems(images), problems, [remark] if others else [])
    if problems:
        places = [layout.where for layout in chosen]
        others = _left_out(dict.fromkeys(source / place for place in ("", "images", *places)))
        listed = first_few([*problems, *others], "\n  ")
        raise ConfigError(f"{source}: no image has an annotation ({', '.join(places)}):\n  {listed}")
    raise ConfigError(
        f"{source}: no supported layout; expected are CNSeg's folders (difficult with difficult_json, or "
        "train-images with train-labels), images with labelme, geojson, instances, labels or masks, images beside "
        f".json or .geojson files, or one COCO .json\n  {_content(source)}"
    )


def files_left_out(images: Sequence[SourceImage]) -> list[str]:
    """Returns a message for each folder of images with other files than images and annotations."""
    return _left_out(dict.fromkeys(item.image_path.parent for item in images))


def _left_out(folders: Iterable[Path]) -> list[str]:
    found = []
    for folder in (folder for folder in folders if folder.is_dir()):
        scan = scan_folder(folder)
        counts = {key: count for key, count in scan.left_out.items() if key not in JSON_SUFFIXES}
        if (folder / SUGGESTIONS).is_file():
            counts[".csv"] -= 1
        others = scan._replace(left_out={key: count for key, count in counts.items() if count})
        if others.left_out:
            found.append(f"{folder}: left out: {others.left_out_text()}")
    return found


def _content(folder: Path) -> str:
    """Describes a folder that holds something else than expected."""
    scan = scan_folder(folder)
    images = f"{len(scan.images)} images" if scan.images else ""
    folders = f"the folders {first_few(scan.folders)}" if scan.folders else ""
    other = scan.left_out_text()
    has_xml = any(path.suffix.lower() == ".xml" for path in folder.rglob("*.[xX][mM][lL]"))
    advice = "; XML is not read, export GeoJSON, COCO or LabelMe" if has_xml else ""
    return f"it holds {', '.join(filter(None, (images, other, folders))) or 'nothing'}{advice}"


def _cnseg(source: Path) -> list[_Layout]:
    layouts = []
    root = source / "clusteredCell" if (source / "clusteredCell").is_dir() else source
    pairs = [(name, root / name, root / f"{name}_json") for name in CLUSTERED_SUBSETS]
    subsets = [pair for pair in pairs if pair[1].is_dir() and pair[2].is_dir()]
    if subsets:
        layouts.append(_subsets("labelme", subsets, JSON_SUFFIXES, lambda name: name.startswith("test-")))
    root = source / "PatchSeg" if (source / "PatchSeg").is_dir() else source
    pairs = [(name, root / f"{name}-images", root / f"{name}-labels") for name in PATCH_SUBSETS]
    subsets = [pair for pair in pairs if pair[1].is_dir() and pair[2].is_dir()]
    if subsets:
        layouts.append(_subsets("labels", subsets, None, lambda name: name == "test"))
    return layouts


def _subsets(
    kind: AnnotationKind,
    subsets: Sequence[tuple[str, Path, Path]],
    suffixes: frozenset[str] | None,
    is_test: Callable[[str], bool],
) -> _Layout:
    def find() -> tuple[list[SourceImage], list[str]]:
        items, problems = [], []
        for name, images, annotations in subsets:
            pairs, unpaired = pair_by_stem(images_by_stem(images), annotation_files(annotations, suffixes))
            items += [
                SourceImage(stem, image, name, is_test(name), kind, path, annotation)
                for stem, image, path, annotation in pairs
            ]
            problems += unpaired
        return items, problems

    return _Layout(kind, ", ".join(folder.name for _, _, folder in subsets), find)


def _side_folders(source: Path) -> list[_Layout]:
    images = source / "images"
    if not images.is_dir():
        return []
    return [
        _plain(kind, images, source / kind, suffixes)
        for kind, suffixes in SIDE_FOLDERS.items()
        if (source / kind).is_dir()
    ]


def _plain(kind: AnnotationKind, images: Path, annotations: Path, suffixes: frozenset[str] | None) -> _Layout:
    def find() -> tuple[list[SourceImage], list[str]]:
        pairs, problems = pair_by_stem(images_by_stem(images), annotation_files(annotations, suffixes))
        found = [SourceImage(stem, image, "", False, kind, path, annotation) for stem, image, path, annotation in pairs]
        return found, problems

    return _Layout(kind, annotations.name, find)


def _same_folder(source: Path) -> list[_Layout]:
    if not list_images(source):
        return []
    layouts = []
    if annotation_files(source, GEOJSON_SUFFIXES):
        layouts.append(_plain("geojson", source, source, GEOJSON_SUFFIXES)._replace(where="*.geojson"))
    files = annotation_files(source, JSON_SUFFIXES - GEOJSON_SUFFIXES)
    if files and not (len(files) == 1 and _is_coco_file(files[0])):
        suffixes = JSON_SUFFIXES - GEOJSON_SUFFIXES
        layouts.append(_plain("labelme", source, source, suffixes)._replace(where="*.json"))
    return layouts


def _alone(source: Path) -> list[_Layout]:
    """Annotation files without images beside them."""
    files = annotation_files(source, JSON_SUFFIXES)
    if not files or list_images(source) or (source / "images").is_dir():
        return []
    kind: AnnotationKind = "geojson" if files[0].suffix.lower() in GEOJSON_SUFFIXES else "labelme"

    def find() -> tuple[list[SourceImage], list[str]]:
        pairs, problems = pair_named_images(source, files)
        images = [
            SourceImage(stem, image, "", False, kind, path, annotation) for stem, image, path, annotation in pairs
        ]
        return images, problems

    return [_Layout(kind, source.name, find)]


def _is_coco_file(path: Path) -> bool:
    return is_coco(parse_json(read_bytes(path), source=path))


def _coco(source: Path) -> list[_Layout]:
    files = annotation_files(source, JSON_SUFFIXES - GEOJSON_SUFFIXES)
    if not files and (source / "annotations").is_dir():
        files = annotation_files(source / "annotations", JSON_SUFFIXES - GEOJSON_SUFFIXES)
    if len(files) != 1 or not _is_coco_file(files[0]):
        return []
    folder = source / "images" if (source / "images").is_dir() else source

    def find() -> tuple[list[SourceImage], list[str]]:
        annotations, problems = read_coco(read_bytes(files[0]), source=files[0])
        by_name = {normalized(path.name): path for path in list_images(folder)}
        items, taken = [], set()
        for annotation in annotations:
            name = normalized(annotation.image_name or "")
            path = by_name.get(name)
            if path is None:
                problems.append(f"{files[0]}: its image {annotation.image_name} is not in {folder}")
            elif name in taken:
                problems.append(f"{files[0]}: lists {path.name} more than once; the first entry is used")
            else:
                taken.add(name)
                items.append(SourceImage(stem_of(path), path, "", False, "coco", files[0], annotation))
        problems += [f"{path}: is not in {files[0].name}" for name, path in by_name.items() if name not in taken]
        return items, problems

    return [_Layout("coco", files[0].name, find)]


def _with_unique_stems(items: Sequence[SourceImage]) -> list[SourceImage]:
    """Prefixes stems that several subsets use with the subset's name, and sorts by stem."""
    counts = Counter(item.stem for item in items)
    named = [
        item._replace(stem=f"{item.subset}_{item.stem}") if counts[item.stem] > 1 and item.subset else item
        for item in items
    ]
    named.sort(key=lambda item: item.stem)
    for first, second in zip(named, named[1:], strict=False):
        if first.stem == second.stem:
            raise DataError(f"{first.image_path} and {second.image_path} share a stem; names must be unique")
    return named
