"""COCO JSON: polygons, and run-length masks plain or compressed."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cervseg_jax.annotations.documents import Columns, crops, json_with_list
from cervseg_jax.annotations.objects import AnnotatedObject, Annotation, Note, as_ring, parse_json, too_few_points
from cervseg_jax.annotations.outlines import Rings, join_parts, signed_area, trace
from cervseg_jax.errors import DataError
from cervseg_jax.extents import Extent
from cervseg_jax.label_maps import Labels

MAX_MASK_PIXELS = 2**27


def is_coco(document: Any) -> bool:
    """Whether a parsed JSON document has the two lists of a COCO document."""
    return isinstance(document, dict) and all(isinstance(document.get(key), list) for key in ("images", "annotations"))


def read_coco(data: bytes, *, source: Path) -> tuple[list[Annotation], list[str]]:
    """Reads a COCO document.

    Args:
      data: content of the file.
      source: path of the file, for messages.

    Returns:
      One annotation per image in the order of the file, including images without nuclei; and one message for each
      entry that belongs to no image.

    Raises:
      DataError: if the document is not COCO.
    """
    document = parse_json(data, source=source)
    if not is_coco(document):
        raise DataError(f"{source}: is not a COCO file (it has no images and annotations)")
    categories = document.get("categories")
    labels = {
        _key(category.get("id")): str(category.get("name", ""))
        for category in (categories if isinstance(categories, list) else [])
        if isinstance(category, dict)
    }
    images, problems = _read_images(document["images"], source)
    entries = document["annotations"]
    # Some programs set iscrowd for every run-length mask; if all entries have it, it cannot tell crowds from nuclei.
    means_crowd = not all(_is_crowd(entry) for entry in entries)
    for index, entry in enumerate(entries, start=1):
        name = f"{source}: annotation {entry['id'] if isinstance(entry, dict) and 'id' in entry else f'no. {index}'}"
        annotation = images.get(_key(entry.get("image_id"))) if isinstance(entry, dict) else None
        if annotation is None:
            image_id = entry.get("image_id") if isinstance(entry, dict) else None
            problems.append(f"{name}: belongs to no image of the file (image_id {image_id!r})")
            continue
        name += f" ({annotation.image_name})"
        try:
            rings = _segmentation(entry.get("segmentation"), name, annotation.notes)
        except DataError as error:
            annotation.problems.append(str(error))
            continue
        if _is_crowd(entry) and not means_crowd:
            annotation.notes.append(Note("iscrowd is 1 in every entry of the file and therefore ignored", name))
        label = labels.get(_key(entry.get("category_id")), "")
        annotation.objects.append(AnnotatedObject(name, rings, label, is_crowd=means_crowd and _is_crowd(entry)))
    return list(images.values()), problems


def _read_images(entries: Sequence[Any], source: Path) -> tuple[dict[str, Annotation], list[str]]:
    images: dict[str, Annotation] = {}
    problems = []
    for index, image in enumerate(entries, start=1):
        if not isinstance(image, dict) or not isinstance(image.get("file_name"), str) or not image["file_name"]:
            problems.append(f"{source}: image no. {index} has no file_name")
            continue
        if _key(image.get("id")) in images:
            problems.append(f"{source}: image no. {index} ({image['file_name']}) has the id of another image")
            continue
        height, width = image.get("height"), image.get("width")
        size = (height, width) if isinstance(height, int) and isinstance(width, int) else None
        images[_key(image.get("id"))] = Annotation([], image_path=image["file_name"], size=size, notes=[], problems=[])
    return images, problems


def _key(value: Any) -> str:
    """Returns an id as a key: 1, 1.0 and "1" are equal, as programs mix them within a file."""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def _is_crowd(entry: Any) -> bool:
    return isinstance(entry, dict) and entry.get("iscrowd") in (1, True)


def _segmentation(segmentation: Any, name: str, notes: list[Note]) -> Rings:
    if isinstance(segmentation, dict):
        rings = trace(_decode_mask(segmentation, name=name))
        if not rings:
            raise DataError(f"{name}: its mask is empty")
        return rings
    if not isinstance(segmentation, list) or not segmentation:
        raise DataError(f"{name}: has no segmentation")
    rings = []
    for flat in segmentation:
        if not isinstance(flat, list) or len(flat) % 2:
            raise DataError(f"{name}: its polygon is not a list of x, y, x, y ...")
        rings.append(as_ring([flat[i : i + 2] for i in range(0, len(flat), 2)], name=name))
    kept = [ring for ring in rings if len(ring) >= 3]
    if not kept:
        raise DataError(f"{name}: has {max(map(len, rings))} points, at least 3 are needed")
    notes.extend(Note(too_few_points("polygon", len(ring)), name) for ring in rings if len(ring) < 3)
    joined = join_parts(kept)
    if len(kept) > 1 and any(signed_area(ring) < 0 for ring in joined):
        notes.append(Note("a polygon within another one of its entry is a hole (COCO's own tools fill it)", name))
    return joined


def _decode_mask(segmentation: Mapping[str, Any], *, name: str) -> np.ndarray:
    """Decodes a run-length mask to bool [h, w]; the runs go down the columns and start with background."""
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if not (isinstance(size, list) and len(size) == 2 and all(isinstance(side, int) and side > 0 for side in size)):
        raise DataError(f"{name}: its mask has no size")
    if isinstance(counts, str):
        counts = _decode_counts(counts)
    if not isinstance(counts, list) or not all(isinstance(count, int) and count >= 0 for count in counts):
        raise DataError(f"{name}: its mask has no run lengths")
    height, width = size
    if sum(counts) != height * width or height * width > MAX_MASK_PIXELS:
        raise DataError(f"{name}: its run lengths add up to {sum(counts)} pixels, its size has {height * width}")
    runs = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return runs.reshape(width, height).T


def _decode_counts(text: str) -> list[int]:
    """Decodes COCO's text form: five bits per character, low bits first, differences to the run before the last."""
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        value |= (bits & 0x1F) << shift
        shift += 5
        if not bits & 0x20:
            if bits & 0x10:
                value -= 1 << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    return counts


def coco_image(image_id: int, file_name: str, shape: tuple[int, int]) -> dict[str, Any]:
    """Returns the entry of an image in a COCO document."""
    return {"id": image_id, "file_name": file_name, "height": shape[0], "width": shape[1]}


def coco_annotations(
    labels: Labels, table: Columns, *, image_id: int, first_id: int, whole: Sequence[Extent] | None = None
) -> Iterator[dict[str, Any]]:
    """Yields the nuclei of an image as COCO annotations with exact run-length masks.

    Args:
      labels: integer labels [h, w].
      table: result of `measure`, one row per nucleus.
      image_id: id of the image's entry.
      first_id: id of the first annotation.
      whole: the nuclei at full extent, where they overlap; None: as the label map shows them.

    Yields:
      One annotation per nucleus, in the order of the table.
    """
    for row, (top, left, inside) in enumerate(crops(labels, table) if whole is None else whole):
        height, width = inside.shape
        yield {
            "id": first_id + row,
            "image_id": image_id,
            "category_id": 1,
            "iscrowd": 0,
            "area": int(inside.sum()),
            "bbox": [left, top, width, height],
            "segmentation": {
                "size": list(labels.shape),
                "counts": _encode_runs(inside, top=top, left=left, shape=labels.shape),
            },
            "score": float(f"{table['confidence'][row]:.6g}"),
        }


def _encode_runs(inside: np.ndarray, *, top: int, left: int, shape: tuple[int, ...]) -> list[int]:
    """Returns alternating lengths of background and nucleus down the columns of the whole image."""
    columns, rows = np.nonzero(inside.T)
    positions = (columns + left) * shape[0] + rows + top
    jumps = np.flatnonzero(np.diff(positions) > 1)
    borders = np.empty(2 * len(jumps) + 2, np.int64)
    borders[0::2] = positions[np.append(0, jumps + 1)]
    borders[1::2] = positions[np.append(jumps, len(positions) - 1)] + 1
    runs = np.diff(borders, prepend=0).tolist()
    rest = shape[0] * shape[1] - int(borders[-1])
    return [*runs, rest] if rest else runs


def coco_document(images: Sequence[Mapping[str, Any]], annotations: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Yields the JSON text of a COCO document in pieces."""
    categories = [{"id": 1, "name": "nucleus", "supercategory": "cell"}]
    return json_with_list({"images": list(images), "categories": categories}, "annotations", annotations)
