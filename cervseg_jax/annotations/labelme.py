"""LabelMe files: reading every shape that LabelMe writes, and writing polygons."""

import base64
import binascii
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cervseg_jax.annotations.objects import Annotation, Nucleus, as_ring, parse_json
from cervseg_jax.annotations.outlines import Rings, trace
from cervseg_jax.data.decode import decode_mask
from cervseg_jax.errors import DataError

CIRCLE_CORNERS = 128
WITHOUT_AREA = frozenset({"point", "points", "line", "linestrip"})


def read_labelme(data: bytes, *, source: Path) -> Annotation:
    """Reads a LabelMe document.

    Understood are polygon, rectangle and oriented rectangle, circle (center and a point on it), ellipse (two corners
    of its box, or center and the ends of both half-axes) and mask. Points and lines have no area; they are left
    out and noted.

    Args:
      data: the file's content.
      source: its name, for messages.

    Returns:
      The nuclei, the image's file name and size.

    Raises:
      DataError: if this is no LabelMe document, or a shape is broken.
    """
    document = parse_json(data, source=source)
    shapes = document.get("shapes") if isinstance(document, dict) else None
    if not isinstance(shapes, list):
        raise DataError(f"{source}: is no LabelMe file (it has no list of shapes)")
    nuclei, notes = [], []
    for number, shape in enumerate(shapes, start=1):
        name = f"{source}: shape {number}"
        if not isinstance(shape, dict):
            raise DataError(f"{name}: is no object")
        kind = shape.get("shape_type") or "polygon"
        if kind in WITHOUT_AREA:
            notes.append(f"{name}: a {kind} has no area and is left out")
            continue
        nuclei.append(Nucleus(str(shape.get("label", "")), _rings(shape, kind, name=name)))
    height, width = document.get("imageHeight"), document.get("imageWidth")
    path = document.get("imagePath")
    return Annotation(
        nuclei,
        image_name=Path(path.replace("\\", "/")).name if isinstance(path, str) and path else None,
        size=(height, width) if isinstance(height, int) and isinstance(width, int) else None,
        notes=notes,
    )


def _rings(shape: dict[str, Any], kind: str, *, name: str) -> Rings:
    points = as_ring(shape.get("points"), name=name, at_least=3 if kind == "polygon" else 2)
    if kind == "polygon":
        return [points]
    if kind in ("rectangle", "oriented_rectangle"):
        return [_box(points) if len(points) == 2 else points]
    if kind == "circle":
        radius = math.dist(points[0], points[1])
        return [_ellipse(points[0], np.array([radius, 0.0]), np.array([0.0, radius]))]
    if kind == "ellipse":
        if len(points) == 2:
            half = np.abs(points[1] - points[0]) / 2
            return [_ellipse(points.mean(axis=0), np.array([half[0], 0.0]), np.array([0.0, half[1]]))]
        return [_ellipse(points[0], points[1] - points[0], points[2] - points[0])]
    if kind == "mask":
        return _mask_rings(shape.get("mask"), points, name=name)
    raise DataError(f"{name}: unknown shape_type {kind!r}")


def _box(points: np.ndarray) -> np.ndarray:
    (x0, y0), (x1, y1) = points.min(axis=0), points.max(axis=0)
    return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])


def _ellipse(center: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, CIRCLE_CORNERS, endpoint=False)[:, None]
    # A polygon inside the ellipse is smaller by this factor; make up for it, so that the area is right.
    grow = math.sqrt(2 * np.pi / (CIRCLE_CORNERS * math.sin(2 * np.pi / CIRCLE_CORNERS)))
    return center + grow * (np.cos(angle) * one + np.sin(angle) * other)


def _mask_rings(text: Any, points: np.ndarray, *, name: str) -> Rings:
    try:
        data = base64.b64decode(text, validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise DataError(f"{name}: its mask is not base64") from None
    mask = decode_mask(data, source=Path(f"{name}, its mask")).mask
    rings = trace(mask, left=int(points[:, 0].min()), top=int(points[:, 1].min()))
    if not rings:
        raise DataError(f"{name}: its mask is empty")
    return rings


def labelme_document(outlines: Sequence[Rings], *, image_path: str, shape: tuple[int, int]) -> str:
    """Returns the JSON text of a LabelMe file with the nuclei as polygons.

    Args:
      outlines: in drawing order; of several rings each becomes a polygon, with a common group_id.
      image_path: path of the image as seen from the JSON file.
      shape: height and width of the image.

    Returns:
      JSON text.
    """
    shapes = [
        labelme_polygon(ring, group=number if len(rings) > 1 else None)
        for number, rings in enumerate(outlines, start=1)
        for ring in rings
    ]
    return json.dumps(labelme_head(image_path=image_path, shape=shape) | {"shapes": shapes}, indent=1)


def labelme_head(*, image_path: str, shape: tuple[int, ...]) -> dict[str, Any]:
    """Returns what a LabelMe file says of its image; all but the shapes."""
    height, width = shape
    return {
        "version": "5.5.0",
        "flags": {},
        "imagePath": Path(image_path).as_posix(),
        "imageData": None,
        "imageHeight": height,
        "imageWidth": width,
    }


def labelme_polygon(ring: np.ndarray, *, group: int | None = None) -> dict[str, Any]:
    """Returns the entry of a nucleus, float [n, 2] with x and y; `group` joins the rings of one."""
    points = np.round(ring, 3).tolist()
    return {"label": "nucleus", "points": points, "group_id": group, "shape_type": "polygon", "flags": {}}
