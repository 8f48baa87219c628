"""Reading of an annotation file by its content."""

from pathlib import Path
from typing import Any

from cervseg_jax.annotations.coco import is_coco
from cervseg_jax.annotations.geojson import is_geojson, parse_geojson
from cervseg_jax.annotations.labelme import is_labelme, parse_labelme
from cervseg_jax.annotations.objects import Annotation, parse_json
from cervseg_jax.errors import DataError


def read_annotation(data: bytes, *, source: Path) -> Annotation:
    """Reads the annotation of one image, LabelMe JSON or GeoJSON, whatever the file is called.

    Args:
      data: content of the file.
      source: path of the file, for messages.

    Returns:
      The annotated objects.

    Raises:
      DataError: if the content is of neither format.
    """
    document = parse_json(data, source=source)
    if is_labelme(document):
        return parse_labelme(document, source=source)
    if is_geojson(document):
        return parse_geojson(document, source=source)
    if is_coco(document):
        raise DataError(f"{source}: is a COCO file of several images; it must be the only .json file in its folder")
    if _is_via(document):
        raise DataError(f"{source}: is a file of the VGG Image Annotator (VIA), which is not read; export COCO from it")
    raise DataError(f"{source}: is neither LabelMe JSON (a list of shapes) nor GeoJSON (a list of features)")


def _is_via(document: Any) -> bool:
    images = document.get("_via_img_metadata", document) if isinstance(document, dict) else None
    entries = list(images.values()) if isinstance(images, dict) else []
    keys = {"filename", "regions"}
    return bool(entries) and all(isinstance(entry, dict) and keys <= entry.keys() for entry in entries)
