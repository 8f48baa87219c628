"""LabelMe JSON: all shapes of the LabelMe program are read; polygons and masks are written.

Reference: wkentaro/labelme 5.5 for the keys of a file and the types of shapes.
"""

import base64
import binascii
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from cervseg_jax.annotations.documents import Columns, crops, json_with_list
from cervseg_jax.annotations.objects import (
    AnnotatedObject,
    Annotation,
    Note,
    as_ring,
    read_objects,
    too_few_points,
)
from cervseg_jax.annotations.outlines import Rings, trace
from cervseg_jax.annotations.polygons import Polygon
from cervseg_jax.data.decode import decode_mask
from cervseg_jax.errors import DataError
from cervseg_jax.extents import Extent
from cervseg_jax.label_maps import Labels
from cervseg_jax.storage.address import Address

CIRCLE_CORNERS = 128
WITHOUT_AREA = frozenset({"point", "points", "line", "linestrip"})
NUCLEUS = "nucleus"
"""Label of nuclei that have no other one."""


def is_labelme(document: Any) -> bool:
    """Whether a parsed JSON document has LabelMe's list of shapes."""
    return isinstance(document, dict) and isinstance(document.get("shapes"), list)


def parse_labelme(document: Any, *, source: Path) -> Annotation:
    """Reads a LabelMe document.

    Supported are polygon, rectangle and oriented rectangle, circle (center and a point on it), ellipse (two corners of
    its box, or center and the ends of both half-axes) and mask. Points, lines and polygons of fewer than three points
    have no area; they are left out with a note.

    Args:
      document: a parsed JSON document for which `is_labelme` is true.
      source: path of the file, for messages.

    Returns:
      The objects, and the path and size of the image.
    """
    annotation = read_objects(document["shapes"], _read_shape, name=f"{source}: shape")
    height, width = document.get("imageHeight"), document.get("imageWidth")
    path = document.get("imagePath")
    return annotation._replace(
        image_path=path if isinstance(path, str) and path else None,
        size=(height, width) if isinstance(height, int) and isinstance(width, int) else None,
        embeds_image=bool(document.get("imageData")),
    )


def _read_shape(shape: Any, name: str, notes: list[Note]) -> AnnotatedObject | None:
    """Returns the object of a shape; None, with a note, where it has no area."""
    if not isinstance(shape, dict):
        raise DataError(f"{name}: is not an object")
    rings, group = _shape_rings(shape, name, notes), shape.get("group_id")
    group = group if isinstance(group, int | str) and not isinstance(group, bool) else None
    return AnnotatedObject(name, rings, str(shape.get("label") or ""), group=group) if rings else None


def _shape_rings(shape: Mapping[str, Any], name: str, notes: list[Note]) -> Rings:
    """Returns the outline of a shape; empty, with a note, where it has no area."""
    kind = shape.get("shape_type") or "polygon"
    if not isinstance(kind, str):
        raise DataError(f"{name}: unknown shape_type {kind!r}")
    if kind in WITHOUT_AREA:
        notes.append(Note(f"a {kind} has no area and is left out", name))
        return []
    points = as_ring(shape.get("points"), name=name)
    if kind == "mask":
        return _mask_rings(shape.get("mask"), points, name=name)
    if kind not in ("polygon", "rectangle", "oriented_rectangle", "circle", "ellipse"):
        raise DataError(f"{name}: unknown shape_type {kind!r}")
    if len(points) < (3 if kind == "polygon" else 2):
        notes.append(Note(too_few_points(kind, len(points)), name))
        return []
    return [_outline(kind, points)]


def _outline(kind: str, points: np.ndarray) -> np.ndarray:
    if kind == "polygon":
        return points
    if kind in ("rectangle", "oriented_rectangle"):
        return _box(points) if len(points) == 2 else points
    if kind == "circle":
        radius = math.dist(points[0], points[1])
        return _ellipse(points[0], np.array([radius, 0.0]), np.array([0.0, radius]))
    if len(points) == 2:
        half = np.abs(points[1] - points[0]) / 2
        return _ellipse(points.mean(axis=0), np.array([half[0], 0.0]), np.array([0.0, half[1]]))
    return _ellipse(points[0], points[1] - points[0], points[2] - points[0])


def _box(points: np.ndarray) -> np.ndarray:
    (x0, y0), (x1, y1) = points.min(axis=0), points.max(axis=0)
    return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])


def _ellipse(center: np.ndarray, first_axis: np.ndarray, second_axis: np.ndarray) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, CIRCLE_CORNERS, endpoint=False)[:, None]
    # The polygon is enlarged by this factor so that it has the area of the ellipse.
    grow = math.sqrt(2 * np.pi / (CIRCLE_CORNERS * math.sin(2 * np.pi / CIRCLE_CORNERS)))
    return center + grow * (np.cos(angle) * first_axis + np.sin(angle) * second_axis)


def _mask_rings(text: Any, points: np.ndarray, *, name: str) -> Rings:
    if not len(points):
        raise DataError(f"{name}: its mask has no position")
    try:
        data = base64.b64decode(text, validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise DataError(f"{name}: its mask is not base64") from None
    mask = decode_mask(data, source=Path(f"{name}, its mask")).mask > 0
    rings = trace(mask, left=int(points[:, 0].min()), top=int(points[:, 1].min()))
    if not rings:
        raise DataError(f"{name}: its mask is empty")
    return rings


class LabeledOutline(NamedTuple):
    """A nucleus as it is written to a LabelMe file."""

    rings: Rings
    label: str = NUCLEUS


def labelme_document(
    nuclei: Sequence[LabeledOutline],
    *,
    image_path: str,
    shape: tuple[int, int],
    decimals: int = 3,
    flags: Mapping[str, bool] | None = None,
) -> str:
    """Returns the JSON text of a LabelMe file with the nuclei as polygons.

    Args:
      nuclei: nuclei in drawing order; each ring becomes a polygon, and the rings of one nucleus share a `group_id`.
      image_path: path of the image relative to the JSON file.
      shape: height and width of the image.
      decimals: digits after the decimal point. Reading the file restores the same pixels if no pixel center is closer
        to an outline than the rounding error.
      flags: flags of the image, which LabelMe shows as check boxes.

    Returns:
      JSON text.
    """
    shapes = [
        _polygon_shape(ring, label=nucleus.label, group=index if len(nucleus.rings) > 1 else None, decimals=decimals)
        for index, nucleus in enumerate(nuclei, start=1)
        for ring in nucleus.rings
    ]
    head = _head(image_path=image_path, shape=shape) | {"flags": dict(flags or {})}
    return json.dumps(head | {"shapes": shapes}, indent=1)


def labelme_with_masks(
    labels: Labels,
    polygons: Sequence[Sequence[Polygon]],
    table: Columns,
    *,
    image_path: str,
    whole: Sequence[Extent] | None = None,
) -> Iterator[str]:
    """Yields a LabelMe file with masks for nuclei that a single polygon cannot show (holes, several parts).

    Args:
      labels: integer labels [h, w].
      polygons: polygons of each nucleus.
      table: result of `measure`, one row per nucleus.
      image_path: path of the image relative to the JSON file, see `path_from`.
      whole: the nuclei at full extent, where they overlap; None: as the label map shows them.

    Yields:
      JSON text in pieces; reading it restores the nuclei.
    """
    head = _head(image_path=image_path, shape=labels.shape[:2])
    return json_with_list(head, "shapes", _shapes(polygons, crops(labels, table) if whole is None else whole))


def path_from(folder: Path, image: Path) -> str:
    """Returns the path by which LabelMe, opening a JSON file in `folder`, finds the image.

    Example:
      >>> path_from(Path("out/labelme"), Path("in/a.png"))
      '../../in/a.png'
    """
    if isinstance(image, Address) and isinstance(folder, Address) and image.parts[:2] == folder.parts[:2]:
        return os.path.relpath(image.key, folder.key)
    if isinstance(image, Address) or isinstance(folder, Address):
        return str(image.absolute())
    try:
        return Path(os.path.relpath(image.absolute(), folder.absolute())).as_posix()
    except ValueError:  # Windows: on another drive
        return image.absolute().as_posix()


def _shapes(polygons: Sequence[Sequence[Polygon]], extents: Iterable[Extent]) -> Iterator[dict[str, Any]]:
    for parts, (top, left, inside) in zip(polygons, extents, strict=True):
        if len(parts) == 1 and not parts[0].holes:
            yield _polygon_shape(parts[0].outer)
            continue
        packed = cv2.imencode(".png", inside.astype(np.uint8) * 255)[1].tobytes()
        height, width = inside.shape
        yield {
            "label": NUCLEUS,
            "points": [[float(left), float(top)], [float(left + width - 1), float(top + height - 1)]],
            "group_id": None,
            "shape_type": "mask",
            "flags": {},
            "mask": base64.b64encode(packed).decode("ascii"),
        }


def _head(*, image_path: str, shape: tuple[int, ...]) -> dict[str, Any]:
    """Returns everything that a LabelMe file needs besides its shapes."""
    height, width = shape
    return {
        "version": "5.5.0",
        "flags": {},
        "imagePath": image_path,
        "imageData": None,
        "imageHeight": height,
        "imageWidth": width,
    }


def _polygon_shape(
    ring: np.ndarray, *, label: str = NUCLEUS, group: int | None = None, decimals: int = 3
) -> dict[str, Any]:
    points = np.round(ring, decimals).tolist()
    return {"label": label, "points": points, "group_id": group, "shape_type": "polygon", "flags": {}}
