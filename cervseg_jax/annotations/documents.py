"""JSON documents: QuPath's GeoJSON, COCO, LabelMe.

A slide has hundred thousands of nuclei: documents come piece by piece, and nothing here looks at more of the label map
than a nucleus' own box.
"""

import base64
import json
import math
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

import cv2
import numpy as np

from cervseg_jax.annotations.labelme import labelme_head, labelme_polygon
from cervseg_jax.annotations.polygons import Polygon

NUCLEUS_COLOR = (230, 30, 140)
_NAMESPACE = uuid.UUID("6f1d7c1e-6d0f-5d0e-9a43-2f0b8a5a1c77")


def geojson_document(
    name: str, polygons: Sequence[Sequence[Polygon]], table: Mapping[str, np.ndarray]
) -> Iterator[str]:
    """Returns a FeatureCollection of detections as QuPath reads it.

    Args:
      name: of the image; names and labels decide the features' ids.
      polygons: of each nucleus.
      table: of `measure`, one row per nucleus; columns become measurements.

    Returns:
      JSON text in pieces.

    Reference: RFC 7946; QuPath 0.4 and later for `objectType`, `classification` and `measurements`.
    """
    return _listing({"type": "FeatureCollection"}, "features", _features(name, polygons, table))


def _features(
    name: str, polygons: Sequence[Sequence[Polygon]], table: Mapping[str, np.ndarray]
) -> Iterator[dict[str, Any]]:
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


def _listing(head: Mapping[str, Any], key: str, items: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Yields the JSON text of `head` and, under `key` behind it, a list of many items."""
    yield json.dumps(head, allow_nan=False).removesuffix("}") + f', "{key}": ['
    separator = "\n"
    for item in items:
        yield separator + json.dumps(item, allow_nan=False)
        separator = ",\n"
    yield "\n]}\n"


def measurements(table: Mapping[str, np.ndarray], row: int) -> dict[str, float]:
    """Returns the defined numbers of a nucleus, rounded to six digits."""
    values = {name: float(column[row]) for name, column in table.items() if name != "label"}
    return {name: float(f"{value:.6g}") for name, value in values.items() if math.isfinite(value)}


def _closed(ring: np.ndarray) -> list[list[float]]:
    return [*ring.tolist(), ring[0].tolist()]


def coco_image(number: int, file_name: str, shape: tuple[int, int]) -> dict[str, Any]:
    """Returns the entry of an image in a COCO document."""
    return {"id": number, "file_name": file_name, "height": shape[0], "width": shape[1]}


def coco_annotations(
    labels: np.ndarray, table: Mapping[str, np.ndarray], *, image_id: int, first_id: int
) -> Iterator[dict[str, Any]]:
    """Yields the nuclei of an image as COCO annotations with exact run-length masks.

    Args:
      labels: integer labels [h, w].
      table: of `measure`, one row per nucleus.
      image_id: of the image's entry.
      first_id: of the first annotation.

    Yields:
      One annotation per nucleus, in the order of the table.
    """
    for row, inside in enumerate(_crops(labels, table)):
        (top, left), (height, width) = _corner(table, row), inside.shape
        yield {
            "id": first_id + row,
            "image_id": image_id,
            "category_id": 1,
            "iscrowd": 0,
            "area": int(inside.sum()),
            "bbox": [left, top, width, height],
            "segmentation": {
                "size": list(labels.shape),
                "counts": _run_lengths(inside, top=top, left=left, shape=labels.shape),
            },
            "score": float(f"{table['confidence'][row]:.6g}"),
        }


def _run_lengths(inside: np.ndarray, *, top: int, left: int, shape: tuple[int, ...]) -> list[int]:
    """Lengths of runs down the columns of the whole image, of background and nucleus by turns."""
    columns, rows = np.nonzero(inside.T)
    places = (columns + left) * shape[0] + rows + top
    jumps = np.flatnonzero(np.diff(places) > 1)
    borders = np.empty(2 * len(jumps) + 2, np.int64)
    borders[0::2] = places[np.append(0, jumps + 1)]
    borders[1::2] = places[np.append(jumps, len(places) - 1)] + 1
    runs = np.diff(borders, prepend=0).tolist()
    rest = shape[0] * shape[1] - int(borders[-1])
    return [*runs, rest] if rest else runs


def coco_document(images: Sequence[Mapping[str, Any]], annotations: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Yields the JSON text of a COCO document in pieces."""
    categories = [{"id": 1, "name": "nucleus", "supercategory": "cell"}]
    return _listing({"images": list(images), "categories": categories}, "annotations", annotations)


def labelme_with_masks(
    labels: np.ndarray,
    polygons: Sequence[Sequence[Polygon]],
    table: Mapping[str, np.ndarray],
    *,
    image_path: PurePath | str,
) -> Iterator[str]:
    """Yields a LabelMe file: polygons, and masks for nuclei with holes or several parts, which no polygon can show.

    Args:
      labels: integer labels [h, w].
      polygons: of each nucleus.
      table: of `measure`, one row per nucleus.
      image_path: path of the image as seen from the JSON file.

    Yields:
      JSON text in pieces; reading it gives the same label map.
    """
    head = labelme_head(image_path=str(image_path), shape=labels.shape[:2])
    return _listing(head, "shapes", _shapes(labels, polygons, table))


def _shapes(
    labels: np.ndarray, polygons: Sequence[Sequence[Polygon]], table: Mapping[str, np.ndarray]
) -> Iterator[dict[str, Any]]:
    for row, (parts, inside) in enumerate(zip(polygons, _crops(labels, table), strict=True)):
        if len(parts) == 1 and not parts[0].holes:
            yield labelme_polygon(parts[0].outer)
            continue
        packed = cv2.imencode(".png", inside.astype(np.uint8) * 255)[1].tobytes()
        (top, left), (height, width) = _corner(table, row), inside.shape
        yield {
            "label": "nucleus",
            "points": [[float(left), float(top)], [float(left + width - 1), float(top + height - 1)]],
            "group_id": None,
            "shape_type": "mask",
            "flags": {},
            "mask": base64.b64encode(packed).decode("ascii"),
        }


def _crops(labels: np.ndarray, table: Mapping[str, np.ndarray]) -> Iterator[np.ndarray]:
    """Yields each nucleus within its own box, bool [h, w]."""
    for row, label in enumerate(table["label"]):
        top, left = _corner(table, row)
        bottom, right = top + int(table["height"][row]), left + int(table["width"][row])
        yield np.asarray(labels[top:bottom, left:right] == label)


def _corner(table: Mapping[str, np.ndarray], row: int) -> tuple[int, int]:
    return int(table["top"][row]), int(table["left"][row])
