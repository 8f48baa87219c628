"""GeoJSON as QuPath reads and writes it.

Reference: RFC 7946; QuPath 0.4 and later for `objectType`, `classification`, `nucleusGeometry` and `measurements`.
"""

import math
import uuid
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from cervseg_jax.annotations.documents import Columns, json_with_list
from cervseg_jax.annotations.objects import (
    AnnotatedObject,
    Annotation,
    Note,
    as_ring,
    read_objects,
    too_few_points,
)
from cervseg_jax.annotations.outlines import Rings, join_parts
from cervseg_jax.annotations.polygons import Polygon
from cervseg_jax.errors import DataError

NUCLEUS_COLOR = (230, 30, 140)
_NAMESPACE = uuid.UUID("6f1d7c1e-6d0f-5d0e-9a43-2f0b8a5a1c77")

_OLD_TYPES = {
    "PathAnnotationObject": "annotation",
    "PathDetectionObject": "detection",
    "PathCellObject": "cell",
    "PathTileObject": "tile",
    "TMACoreObject": "tma_core",
}
"""Feature ids by which QuPath up to 0.2 marked the type of an object."""


def is_geojson(document: Any) -> bool:
    """Whether a parsed JSON document is GeoJSON: a collection, one feature, or a list of features."""
    if isinstance(document, list):
        return bool(document) and all(isinstance(item, dict) and item.get("type") == "Feature" for item in document)
    return isinstance(document, dict) and (
        isinstance(document.get("features"), list) or document.get("type") in ("Feature", "FeatureCollection")
    )


def parse_geojson(document: Any, *, source: Path) -> Annotation:
    """Reads a GeoJSON document as QuPath exports it, for one image.

    A polygon with holes or a multi-polygon is one object. A cell that has a `nucleusGeometry` is read as that outline.
    Geometries without an area are left out with a note.

    Args:
      document: a parsed JSON document for which `is_geojson` is true.
      source: path of the file, for messages.

    Returns:
      The objects, whose labels are the names of their classifications.

    Raises:
      DataError: if the document has no list of features.
    """
    features = document.get("features") if isinstance(document, dict) else document
    if isinstance(document, dict) and document.get("type") == "Feature":
        features = [document]
    if not isinstance(features, list):
        raise DataError(f"{source}: is not GeoJSON (it has no list of features)")
    has_nuclei = any(isinstance(feature, dict) and _nucleus_geometry(feature) for feature in features)
    return read_objects(features, partial(_read_feature, has_nuclei=has_nuclei), name=f"{source}: feature")


def _read_feature(feature: Any, name: str, notes: list[Note], *, has_nuclei: bool) -> AnnotatedObject | None:
    if not isinstance(feature, dict):
        raise DataError(f"{name}: is not an object")
    kind, geometry = _object_type(feature), feature.get("geometry")
    nucleus = _nucleus_geometry(feature)
    if nucleus is not None:
        notes.append(Note("a cell: the nucleus is taken from its nucleusGeometry, not the cell's border", name))
        geometry = nucleus
    elif kind == "cell" and has_nuclei:
        notes.append(Note("a cell without a nucleusGeometry is left out", name))
        return None
    elif kind == "cell":
        notes.append(Note("a cell without a nucleusGeometry: the cell's border is taken as the nucleus", name))
    if not isinstance(geometry, dict):
        raise DataError(f"{name}: has no geometry")
    rings = _rings(geometry, name, notes)
    return AnnotatedObject(name, rings, _label(feature), kind) if rings else None


def _rings(geometry: Mapping[str, Any], name: str, notes: list[Note]) -> Rings:
    """Returns the rings of a geometry; none, with a note, where it has no area."""
    kind, polygons = geometry.get("type"), _polygons(geometry)
    if polygons is None:
        notes.append(Note(f"a {kind} has no area and is left out", name))
        return []
    if not isinstance(polygons, list) or not all(isinstance(rings, list) for rings in polygons):
        raise DataError(f"{name}: its coordinates are not lists of rings")
    rings = [as_ring(ring, name=name) for polygon in polygons for ring in polygon]
    if not rings:
        raise DataError(f"{name}: has no ring")
    kept = [ring for ring in rings if len(ring) >= 3]
    notes.extend(Note(too_few_points("ring", len(ring)), name) for ring in rings if len(ring) < 3)
    return join_parts(kept) if len(polygons) > 1 else kept


def _polygons(geometry: Mapping[str, Any]) -> Any:
    """Returns the polygons of a geometry as lists of rings, or None for points and lines."""
    kind, coordinates = geometry.get("type"), geometry.get("coordinates")
    if kind == "Polygon":
        return [coordinates]
    if kind == "MultiPolygon":
        return coordinates
    if kind == "GeometryCollection":
        members = geometry.get("geometries")
        parts = [_polygons(member) for member in members if isinstance(member, dict)] if _is_list(members) else []
        return [polygon for part in parts if _is_list(part) for polygon in part] or None
    return None


def _is_list(value: Any) -> TypeGuard[list[Any]]:
    return isinstance(value, list)


def _nucleus_geometry(feature: Mapping[str, Any]) -> dict[str, Any] | None:
    for holder in (feature, feature.get("properties")):
        geometry = holder.get("nucleusGeometry") if isinstance(holder, dict) else None
        if isinstance(geometry, dict):
            return geometry
    return None


def _object_type(feature: Mapping[str, Any]) -> str:
    properties = feature.get("properties")
    properties = properties if isinstance(properties, dict) else {}
    kind = properties.get("objectType") or properties.get("object_type") or _OLD_TYPES.get(str(feature.get("id")), "")
    return str(kind).lower()


def _label(feature: Mapping[str, Any]) -> str:
    """Returns the class name; the parts of a derived class are joined as QuPath shows them: "Tumor: Positive"."""
    properties = feature.get("properties")
    classification = properties.get("classification") if isinstance(properties, dict) else None
    if isinstance(classification, str):
        return classification
    if not isinstance(classification, dict):
        return ""
    names = classification.get("names")
    return ": ".join(map(str, names)) if _is_list(names) else str(classification.get("name") or "")


def geojson_document(name: str, polygons: Sequence[Sequence[Polygon]], table: Columns) -> Iterator[str]:
    """Yields a FeatureCollection of detections as QuPath reads it.

    Args:
      name: name of the image; with the labels it determines the ids of the features.
      polygons: polygons of each nucleus.
      table: result of `measure`, one row per nucleus; its columns become measurements.

    Yields:
      JSON text in pieces.
    """
    return json_with_list({"type": "FeatureCollection"}, "features", _features(name, polygons, table))


def _features(name: str, polygons: Sequence[Sequence[Polygon]], table: Columns) -> Iterator[dict[str, Any]]:
    name = name.encode("utf-8", "backslashreplace").decode()  # file names need not be text
    for row, parts in enumerate(polygons):
        coordinates = [[_closed(ring) for ring in (part.outer, *part.holes)] for part in parts]
        geometry = (
            {"type": "Polygon", "coordinates": coordinates[0]}
            if len(parts) == 1
            else {"type": "MultiPolygon", "coordinates": coordinates}
        )
        yield {
            "type": "Feature",
            "id": str(uuid.uuid5(_NAMESPACE, f"{name}/{table['label'][row]}")),
            "geometry": geometry,
            "properties": {
                "objectType": "detection",
                "classification": {"name": "nucleus", "color": list(NUCLEUS_COLOR)},
                "measurements": measurements(table, row),
            },
        }


def measurements(table: Columns, row: int) -> dict[str, float]:
    """Returns the finite values of a nucleus, rounded to six significant digits."""
    values = {name: float(column[row]) for name, column in table.items() if name != "label"}
    return {name: float(f"{value:.6g}") for name, value in values.items() if math.isfinite(value)}


def _closed(ring: np.ndarray) -> list[list[float]]:
    return [*ring.tolist(), ring[0].tolist()]
