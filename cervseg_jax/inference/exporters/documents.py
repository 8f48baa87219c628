"""JSON documents: QuPath's GeoJSON, COCO, LabelMe."""

import base64
import json
import math
import uuid
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import cv2
import numpy as np

from cervseg_jax.data.labelme import labelme_document
from cervseg_jax.inference.exporters.outlines import Polygon
from cervseg_jax.metrics.label_maps import bounding_boxes

NUCLEUS_COLOUR = (230, 30, 140)
_NAMESPACE = uuid.UUID("6f1d7c1e-6d0f-5d0e-9a43-2f0b8a5a1c77")


def geojson_document(name: str, polygons: Sequence[Sequence[Polygon]], table: Mapping[str, np.ndarray]) -> str:
    """Returns a FeatureCollection of detections as QuPath reads it.

    Args:
      name: of the image; names and labels decide the features' ids.
      polygons: of each nucleus.
      table: of `measure`, one row per nucleus; columns become measurements.

    Returns:
      JSON text.

    Reference: RFC 7946; QuPath 0.4 and later for `objectType`, `classification` and `measurements`.
    """
    features = []
    for row, parts in enumerate(polygons):
        coordinates = [[_closed(ring) for ring in (part.outer, *part.holes)] for part in parts]
        geometry = (
            {"type": "Polygon", "coordinates": coordinates[0]}
            if len(parts) == 1
            else {"type": "MultiPolygon", "coordinates": coordinates}
        )
        features.append(
            {
                "type": "Feature",
                "id": str(uuid.uuid5(_NAMESPACE, f"{name}/{table['label'][row]}")),
                "geometry": geometry,
                "properties": {
                    "objectType": "detection",
                    "classification": {"name": "nucleus", "color": list(NUCLEUS_COLOUR)},
                    "measurements": measurements(table, row),
                },
            }
        )
    return json.dumps({"type": "FeatureCollection", "features": features}, allow_nan=False)


def measurements(table: Mapping[str, np.ndarray], row: int) -> dict[str, float]:
    """Returns the defined numbers of a nucleus, rounded to six digits."""
    values = {name: float(column[row]) for name, column in table.items() if name != "label"}
    return {name: float(f"{value:.6g}") for name, value in values.items() if math.isfinite(value)}


def _closed(ring: np.ndarray) -> list[list[float]]:
    return [*ring.tolist(), ring[0].tolist()]


def coco_image(number: int, file_name: str, shape: tuple[int, int]) -> dict[str, Any]:
    """Returns the entry of an image in a COCO document."""
    return {"id": number, "file_name": file_name, "height": shape[0], "width": shape[1]}


def coco_annotations(labels: np.ndarray, *, image_id: int, first_id: int, scores: np.ndarray) -> list[dict[str, Any]]:
    """Returns the nuclei of an image as COCO annotations with exact run-length masks.

    Args:
      labels: integer labels [h, w].
      image_id: of the image's entry.
      first_id: of the first annotation.
      scores: confidence of each nucleus.

    Returns:
      One annotation per nucleus, in the order of the labels.
    """
    found = np.unique(labels[labels > 0])
    entries = []
    for row, (label, (top, left, bottom, right)) in enumerate(zip(found, bounding_boxes(labels), strict=True)):
        inside = np.zeros(labels.shape, bool)
        inside[top:bottom, left:right] = labels[top:bottom, left:right] == label
        # Runs go down the columns and start with background.
        down = inside.T.ravel()
        borders = np.flatnonzero(np.diff(down)) + 1
        counts = np.diff(np.concatenate([[0], borders, [down.size]])).tolist()
        entries.append(
            {
                "id": first_id + row,
                "image_id": image_id,
                "category_id": 1,
                "iscrowd": 0,
                "area": int(inside.sum()),
                "bbox": [int(left), int(top), int(right - left), int(bottom - top)],
                "segmentation": {"size": list(labels.shape), "counts": [0, *counts] if down[0] else counts},
                "score": float(f"{scores[row]:.6g}"),
            }
        )
    return entries


def coco_document(images: Sequence[Mapping[str, Any]], annotations: Sequence[Mapping[str, Any]]) -> str:
    """Returns the JSON text of a COCO document."""
    categories = [{"id": 1, "name": "nucleus", "supercategory": "cell"}]
    return json.dumps({"images": list(images), "annotations": list(annotations), "categories": categories})


def labelme_with_masks(labels: np.ndarray, polygons: Sequence[Sequence[Polygon]], *, image_path: PurePath | str) -> str:
    """Returns a LabelMe file: polygons, and masks for nuclei with holes or several parts, which no polygon can show.

    Args:
      labels: integer labels [h, w].
      polygons: of each nucleus.
      image_path: path of the image as seen from the JSON file.

    Returns:
      JSON text; reading it gives the same label map.
    """
    plain = [[parts[0].outer] for parts in polygons if len(parts) == 1 and not parts[0].holes]
    document = json.loads(labelme_document(plain, image_path=str(image_path), shape=labels.shape[:2]))
    found = np.unique(labels[labels > 0])
    shapes, drawn = [], iter(document["shapes"])
    for label, parts, (top, left, bottom, right) in zip(found, polygons, bounding_boxes(labels), strict=True):
        if len(parts) == 1 and not parts[0].holes:
            shapes.append(next(drawn))
            continue
        crop = (labels[top:bottom, left:right] == label).astype(np.uint8) * 255
        packed = cv2.imencode(".png", crop)[1].tobytes()
        shapes.append(
            {
                "label": "nucleus",
                "points": [[float(left), float(top)], [float(right - 1), float(bottom - 1)]],
                "group_id": None,
                "shape_type": "mask",
                "flags": {},
                "mask": base64.b64encode(packed).decode("ascii"),
            }
        )
    return json.dumps({**document, "shapes": shapes}, indent=1)
