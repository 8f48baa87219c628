"""Pairing of images with annotation files, by stem and by the image's name in the file."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from cervseg_jax.annotations.objects import Annotation
from cervseg_jax.annotations.reader import read_annotation
from cervseg_jax.data.decode import IMAGE_SUFFIXES, read_bytes
from cervseg_jax.data.pairs import images_by_stem, list_images, normalized, stem_of
from cervseg_jax.errors import DataError

GEOJSON_SUFFIXES = frozenset({".geojson"})
JSON_SUFFIXES = frozenset({".json", ".geojson"})

_ENDING = re.compile(r"[-_. ](cp_masks|masks?|labels?|instances?|seg|segmentation|gt|annotations?)$", re.IGNORECASE)
"""What programs append to an image's name to name its mask or annotation."""

Paired = tuple[str, Path, Path, Annotation | None]
"""Stem, image, annotation file, and its content where it had to be read."""


def annotation_files(folder: Path, suffixes: frozenset[str] | None) -> list[Path]:
    """Lists annotation files by suffix, or images if `suffixes` is None; hidden files are no annotations."""
    paths = list_images(folder) if suffixes is None else sorted(folder.iterdir())
    return [
        path
        for path in paths
        if not path.name.startswith(".") and (suffixes is None or path.suffix.lower() in suffixes)
    ]


def pair_by_stem(images: Mapping[str, Path], files: Sequence[Path]) -> tuple[list[Paired], list[str]]:
    """Pairs by stem; a JSON file whose stem fits no image is then paired by the image name in it.

    A file of the image's own stem always comes first, so that a copy such as `x (1).json` never replaces `x.json`.

    Args:
      images: images by normalized stem.
      files: annotation files.

    Returns:
      Pairs, and one message for each file without a partner.
    """
    taken: dict[str, Path] = {}
    problems: list[str] = []
    leftover = []
    for path in files:
        stem = _own_stem(path, images)
        if stem is None:
            leftover.append(path)
        elif stem in taken:
            problems.append(f"{path}: {images[stem].name} has {taken[stem].name} already")
        else:
            taken[stem] = path
    pairs: list[Paired] = [(stem, images[stem], path, None) for stem, path in taken.items()]
    named: dict[str, list[tuple[Path, Annotation]]] = {}
    for path in leftover:
        try:
            annotation = (
                read_annotation(read_bytes(path), source=path) if path.suffix.lower() in JSON_SUFFIXES else None
            )
        except DataError as error:
            problems.append(str(error))
            continue
        stem = normalized(Path(annotation.image_name).stem) if annotation and annotation.image_name else None
        if annotation is None or stem is None or stem not in images:
            problems.append(f"{path}: has no image")
        elif stem in taken:
            problems.append(f"{path}: {images[stem].name} has {taken[stem].name} already")
        else:
            named.setdefault(stem, []).append((path, annotation))
    for stem, candidates in named.items():
        if len(candidates) == 1:
            pairs.append((stem, images[stem], *candidates[0]))
        else:
            names = ", ".join(path.name for path, _ in candidates)
            problems.append(f"{images[stem]}: several files name this image ({names}); keep one")
    used = taken.keys() | named.keys()
    problems += [f"{path}: has no annotation" for stem, path in images.items() if stem not in used]
    return pairs, problems


def pair_named_images(folder: Path, files: Sequence[Path]) -> tuple[list[Paired], list[str]]:
    """Pairs annotation files with images elsewhere: at their `imagePath`, or in `../images`.

    A path is followed if it is relative and leads no further up than two folders above the files.

    Args:
      folder: folder of the files.
      files: LabelMe or GeoJSON files.

    Returns:
      Pairs, and one message for each file without a partner.
    """
    beside = folder.parent / "images"
    siblings = {stem: path.resolve() for stem, path in images_by_stem(beside).items()} if beside.is_dir() else {}
    by_image: dict[Path, list[tuple[Path, Annotation | None]]] = {}
    problems = []
    for path in files:
        try:
            annotation = read_annotation(read_bytes(path), source=path)
        except DataError as error:
            problems.append(str(error))
            continue
        image = _named_image(folder, annotation, siblings) or siblings.get(stem_of(path))
        if image is None:
            stated = f"imagePath is {annotation.image_path!r}" if annotation.image_path else ""
            embedded = "its imageData holds the picture: save that beside it" if annotation.embeds_image else ""
            remarks = "; ".join(filter(None, (stated, embedded)))
            problems.append(f"{path}: has no image" + (f" ({remarks})" if remarks else ""))
        else:
            by_image.setdefault(image, []).append((path, annotation))
    pairs: list[Paired] = []
    for image, candidates in by_image.items():
        stem = stem_of(image)
        own = [candidate for candidate in candidates if stem_of(candidate[0]) == stem] or candidates
        if len(own) > 1:
            problems.append(f"{image}: several files name this image ({', '.join(path.name for path, _ in own)})")
            continue
        pairs.append((stem, image, *own[0]))
        problems += [
            f"{path}: {image.name} has {own[0][0].name} already" for path, _ in candidates if path != own[0][0]
        ]
    return pairs, problems


def _own_stem(path: Path, images: Mapping[str, Path]) -> str | None:
    """Returns the stem of the image that a file is named after: `x.json`, `x.png.json` or `x_mask.png`."""
    stem = stem_of(path)
    if stem not in images and Path(stem).suffix.lower() in IMAGE_SUFFIXES:
        stem = Path(stem).stem
    if stem not in images:
        stem = _ENDING.sub("", stem)
    return stem if stem in images else None


def _named_image(folder: Path, annotation: Annotation, siblings: Mapping[str, Path]) -> Path | None:
    if not annotation.image_path or not annotation.image_name:
        return None
    try:
        path = (folder / annotation.image_path.replace("\\", "/")).resolve()
        is_near = path.is_relative_to(folder.parent.parent.resolve())
        if is_near and path.suffix.lower() in IMAGE_SUFFIXES and path.is_file():
            return path
    except (OSError, RuntimeError, ValueError):  # endless links, zero bytes, names that the system refuses
        pass
    return siblings.get(normalized(Path(annotation.image_name).stem))
