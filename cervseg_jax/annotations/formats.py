"""COCO JSON and QuPath GeoJSON."""

from pathlib import Path
from typing import Any

import numpy as np

from cervseg_jax.annotations.objects import Annotation, Nucleus, as_ring, parse_json
from cervseg_jax.annotations.outlines import Rings, trace
from cervseg_jax.errors import DataError

MAX_MASK_PIXELS = 2**27


def read_coco(data: bytes, *, source: Path) -> list[Annotation]:
    """Reads a COCO document: polygons, and run-length masks plain or compressed.

    Args:
      data: the file's content.
      source: its name, for messages.

    Returns:
      One annotation per image, in the order of the file; images without nuclei are among them.

    Raises:
      DataError: if this is no COCO document, or an entry is broken.
    """
    document = parse_json(data, source=source)
    if not is_coco(document):
        raise DataError(f"{source}: is no COCO file (it has no images and annotations)")
    labels = {
        category.get("id"): str(category.get("name", ""))
        for category in document.get("categories", [])
        if isinstance(category, dict)
    }
    found: dict[Any, Annotation] = {}
    for number, image in enumerate(document["images"], start=1):
        if not isinstance(image, dict) or not isinstance(image.get("file_name"), str):
            raise DataError(f"{source}: image {number} has no file_name")
        height, width = image.get("height"), image.get("width")
        size = (height, width) if isinstance(height, int) and isinstance(width, int) else None
        name = Path(image["file_name"].replace("\\", "/")).name
        found[image.get("id")] = Annotation([], image_name=name, size=size, notes=[])
    for number, entry in enumerate(document["annotations"], start=1):
        name = f"{source}: annotation {number}"
        if not isinstance(entry, dict) or entry.get("image_id") not in found:
            raise DataError(f"{name}: belongs to no image of the file")
        rings = _segmentation(entry.get("segmentation"), name=name)
        label = labels.get(entry.get("category_id"), "")
        found[entry["image_id"]].nuclei.append(Nucleus(label, rings))
    return list(found.values())


def is_coco(document: Any) -> bool:
    """Whether a parsed JSON document has the two lists that make it COCO."""
    return isinstance(document, dict) and all(isinstance(document.get(key), list) for key in ("images", "annotations"))


def read_geojson(data: bytes, *, source: Path) -> Annotation:
    """Reads a GeoJSON document as QuPath exports it, for one image.

    Polygons with holes and multi-polygons become one nucleus each; other geometries have no area and are noted.

    Args:
      data: the file's content.
      source: its name, for messages.

    Returns:
      The nuclei; their labels are the classifications' names.

    Raises:
      DataError: if this is no GeoJSON, or a geometry is broken.
    """
    document = parse_json(data, source=source)
    features = document.get("features") if isinstance(document, dict) else document
    if isinstance(document, dict) and document.get("type") == "Feature":
        features = [document]
    if not isinstance(features, list):
        raise DataError(f"{source}: is no GeoJSON (it has no features)")
    nuclei, notes = [], []
    for number, feature in enumerate(features, start=1):
        name = f"{source}: feature {number}"
        geometry = feature.get("geometry") if isinstance(feature, dict) else None
        if not isinstance(geometry, dict):
            raise DataError(f"{name}: has no geometry")
        kind, parts = geometry.get("type"), geometry.get("coordinates")
        if kind not in ("Polygon", "MultiPolygon"):
            notes.append(f"{name}: a {kind} has no area and is left out")
            continue
        polygons: Any = [parts] if kind == "Polygon" else parts
        if not isinstance(polygons, list) or not all(isinstance(rings, list) for rings in polygons):
            raise DataError(f"{name}: its coordinates are no lists of rings")
        rings = [as_ring(ring, name=name) for rings in polygons for ring in rings]
        if not rings:
            raise DataError(f"{name}: has no ring")
        nuclei.append(Nucleus(_classification(feature), rings))
    return Annotation(nuclei, notes=notes)


def _classification(feature: dict[str, Any]) -> str:
    properties = feature.get("properties")
    classification = properties.get("classification") if isinstance(properties, dict) else None
    return str(classification.get("name", "")) if isinstance(classification, dict) else ""


def _segmentation(segmentation: Any, *, name: str) -> Rings:
    if isinstance(segmentation, dict):
        rings = trace(_run_lengths(segmentation, name=name))
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
    return rings


def _run_lengths(segmentation: dict[str, Any], *, name: str) -> np.ndarray:
    """Decodes a run-length mask, whose runs go down the columns and start with background."""
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if not (isinstance(size, list) and len(size) == 2 and all(isinstance(side, int) and side > 0 for side in size)):
        raise DataError(f"{name}: its mask has no size")
    if isinstance(counts, str):
        counts = _uncompressed(counts)
    if not isinstance(counts, list) or not all(isinstance(count, int) and count >= 0 for count in counts):
        raise DataError(f"{name}: its mask has no run lengths")
    height, width = size
    if sum(counts) != height * width or height * width > MAX_MASK_PIXELS:
        raise DataError(f"{name}: its run lengths add up to {sum(counts)} pixels, its size has {height * width}")
    runs = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return runs.reshape(width, height).T


def _uncompressed(text: str) -> list[int]:
    """Undoes COCO's text form: five bits per character, low ones first, differences to the run but one before."""
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
