"""Finding images and their annotations in the layouts that datasets come in."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from cervseg_jax.annotations.formats import is_coco, read_coco, read_geojson
from cervseg_jax.annotations.labelme import read_labelme
from cervseg_jax.annotations.objects import Annotation, Nucleus, parse_json
from cervseg_jax.choices import MaskRule
from cervseg_jax.data.decode import read_bytes, read_labels, read_mask
from cervseg_jax.data.pairs import images_by_stem, list_images
from cervseg_jax.errors import ConfigError, DataError
from cervseg_jax.files import refuse_bucket

CLUSTERED_SUBSETS = ("difficult", "normal", "sample", "test-difficult", "test-normal", "test-sample")
PATCH_SUBSETS = ("train", "test")

Kind = Literal["labelme", "geojson", "coco", "instances", "masks"]


class SourceImage(NamedTuple):
    """An image of the source, and where its truth is."""

    stem: str
    """Unique within the dataset."""
    image_path: Path
    subset: str
    """Folder of the source that it comes from, such as "difficult"; empty where there is one alone."""
    is_test: bool
    """Whether the dataset's makers put it into their test part."""
    kind: Kind
    annotation_path: Path
    annotation: Annotation | None = None
    """Already read, for formats that keep all images in one file."""


class Truth(NamedTuple):
    """The truth of an image: outlines, or a label map, or a mask that merges touching nuclei."""

    nuclei: list[Nucleus] | None = None
    labels: np.ndarray | None = None
    """int32 [h, w]."""
    has_instances: bool = True
    """Whether touching nuclei are told apart."""
    claimed_size: tuple[int, int] | None = None
    """Height and width that the annotation states."""
    notes: list[str] = []


def collect(source: Path) -> tuple[list[SourceImage], list[str]]:
    """Lists the images of a dataset in any layout that is understood.

    Understood are CNSeg's clusteredCell and PatchSeg folders by name; `images` beside `labelme`, `instances`, `labels`
    or `masks`; images beside LabelMe JSON or GeoJSON files of the same stem; and one COCO JSON.

    Args:
      source: the folder.

    Returns:
      Items sorted by stem, and one message for each file without a partner.

    Raises:
      ConfigError: if there is no such folder, or nothing in it is understood.
      DataError: if names are ambiguous.
    """
    refuse_bucket(source)
    if not source.is_dir():
        raise ConfigError(f"{source}: no such folder")
    problems: list[str] = []
    for find in (_clustered, _patches, _side_folders, _coco, _same_folder):
        items = find(source, problems)
        if items:
            return sorted(_unique(items), key=lambda item: item.stem), problems
    raise ConfigError(
        f"{source}: nothing in it is understood; expected are CNSeg's folders (difficult with difficult_json, or "
        "train-images with train-labels), images with labelme, instances, labels or masks, images beside .json or "
        ".geojson files, or one COCO .json" + ("\n  " + "\n  ".join(problems[:5]) if problems else "")
    )


def read_truth(item: SourceImage, *, mask_rule: MaskRule) -> Truth:
    """Reads the truth of an item.

    Raises:
      DataError: if its file is bad.
    """
    if item.kind == "masks":
        return Truth(labels=read_mask(item.annotation_path, rule=mask_rule).mask.astype(np.int32), has_instances=False)
    if item.kind == "instances":
        labels, has_instances = read_labels(item.annotation_path, rule=mask_rule)
        return Truth(labels=labels, has_instances=has_instances)
    annotation = item.annotation
    if annotation is None:
        read = read_geojson if item.kind == "geojson" else read_labelme
        annotation = read(read_bytes(item.annotation_path), source=item.annotation_path)
    return Truth(nuclei=annotation.nuclei, claimed_size=annotation.size, notes=annotation.notes)


def _clustered(source: Path, problems: list[str]) -> list[SourceImage]:
    root = source / "clusteredCell" if (source / "clusteredCell").is_dir() else source
    items = []
    for subset in CLUSTERED_SUBSETS:
        images, annotations = root / subset, root / f"{subset}_json"
        if images.is_dir() and annotations.is_dir():
            items += _pair(images, annotations, ".json", "labelme", subset, subset.startswith("test-"), problems)
    return items


def _patches(source: Path, problems: list[str]) -> list[SourceImage]:
    root = source / "PatchSeg" if (source / "PatchSeg").is_dir() else source
    items = []
    for subset in PATCH_SUBSETS:
        images, labels = root / f"{subset}-images", root / f"{subset}-labels"
        if images.is_dir() and labels.is_dir():
            items += _pair(images, labels, None, "instances", subset, subset == "test", problems)
    return items


_SIDE_FOLDERS: tuple[tuple[str, str | None, Kind], ...] = (
    ("labelme", ".json", "labelme"),
    ("geojson", ".geojson", "geojson"),
    ("instances", None, "instances"),
    ("labels", None, "instances"),
    ("masks", None, "masks"),
)
_SAME_FOLDER: tuple[tuple[str, Kind], ...] = ((".geojson", "geojson"), (".json", "labelme"))


def _side_folders(source: Path, problems: list[str]) -> list[SourceImage]:
    images = source / "images"
    if not images.is_dir():
        return []
    for name, suffix, kind in _SIDE_FOLDERS:
        if (source / name).is_dir():
            return _pair(images, source / name, suffix, kind, "", False, problems)
    return []


def _same_folder(source: Path, problems: list[str]) -> list[SourceImage]:
    for suffix, kind in _SAME_FOLDER:
        if any(source.glob(f"*{suffix}")):
            return _pair(source, source, suffix, kind, "", False, problems)
    return []


def _coco(source: Path, problems: list[str]) -> list[SourceImage]:
    files = sorted(source.glob("*.json"))
    if len(files) != 1:
        return []
    data = read_bytes(files[0])
    if not is_coco(parse_json(data, source=files[0])):
        return []
    folder = source / "images" if (source / "images").is_dir() else source
    by_name = {path.name: path for path in list_images(folder)}
    items = []
    for annotation in read_coco(data, source=files[0]):
        path = by_name.pop(annotation.image_name or "", None)
        if path is None:
            problems.append(f"{files[0]}: its image {annotation.image_name} is not in {folder}")
        else:
            items.append(SourceImage(path.stem, path, "", False, "coco", files[0], annotation))
    problems += [f"{path}: is not in {files[0].name}" for path in by_name.values()]
    return items


def _pair(
    images: Path, annotations: Path, suffix: str | None, kind: Kind, subset: str, is_test: bool, problems: list[str]
) -> list[SourceImage]:
    """Pairs by stem; a JSON file whose stem fits no image is paired by the image name that it holds."""
    by_stem = images_by_stem(images)
    found = list_images(annotations) if suffix is None else sorted(annotations.glob(f"*{suffix}"))
    items = []
    for path in found:
        image = by_stem.pop(path.stem, None)
        annotation = None
        if image is None and kind == "labelme":
            annotation = _quietly(path)
            name = annotation.image_name if annotation else None
            image = by_stem.pop(Path(name).stem, None) if name else None
        if image is None:
            problems.append(f"{path}: has no image")
        else:
            items.append(SourceImage(image.stem, image, subset, is_test, kind, path, annotation))
    problems += [f"{path}: has no annotation" for path in by_stem.values()]
    return items


def _quietly(path: Path) -> Annotation | None:
    """Reads a LabelMe file to learn its image's name; a broken one is reported when its turn comes."""
    try:
        return read_labelme(read_bytes(path), source=path)
    except DataError:
        return None


def _unique(items: Sequence[SourceImage]) -> list[SourceImage]:
    """Puts the subset's name before stems that several subsets use."""
    counts: dict[str, int] = {}
    for item in items:
        counts[item.stem] = counts.get(item.stem, 0) + 1
    return [
        item._replace(stem=f"{item.subset}_{item.stem}") if counts[item.stem] > 1 and item.subset else item
        for item in items
    ]
