"""What the reviewing section needs of each image: a picture, and outlines of the nuclei."""

from pathlib import Path
from typing import Any

import numpy as np

from cervseg_jax.annotations.polygons import polygons_of, simplified
from cervseg_jax.data.resize import resize_image
from cervseg_jax.label_maps import bounding_boxes, distance_to_border
from cervseg_jax.report.pictures import LAYER_PX, fitting_size, jpeg_uri

REVIEW_PX = 1600
"""Maximum length of the longer side of the picture."""

HELP = (
    ("j, k", "next, previous nucleus"),
    ("a, r, f", "accept, reject, flag the nucleus, and go to the next one; the same key again takes it back"),
    ("Shift + A, R, F", "accept, reject, flag the whole image"),
    ("Shift + J, K", "next, previous image"),
    ("u", "undo"),
    ("z", "show the nucleus or the whole image"),
    ("s", "save decisions.json"),
)
"""Keys and what they do."""


def review_entry(image: np.ndarray, labels: np.ndarray | None, *, file: Path) -> dict[str, Any]:
    """Returns an image for review.

    Args:
      image: uint8 RGB [h, w, 3].
      labels: integer labels [h, w]; None where the folder has no instances, so that only the image can be judged.
      file: the image file.

    Returns:
      JSON values: `file`, `size`, `picture` (None where the viewer's layer is as large) and `nuclei`, each with its
      label, a point inside of it, and its rings, positions in pixels of the image.
    """
    picture = None
    if max(image.shape[:2]) > LAYER_PX:
        picture = jpeg_uri(resize_image(image, fitting_size(image.shape, REVIEW_PX)), quality=85)
    nuclei = [] if labels is None else _nuclei(np.asarray(labels, np.int32))
    return {"file": str(file), "size": list(image.shape[:2]), "picture": picture, "nuclei": nuclei}


def _nuclei(labels: np.ndarray) -> list[dict[str, Any]]:
    found = np.unique(labels[labels > 0]).tolist()
    entries = []
    for label, box, parts in zip(found, bounding_boxes(labels).tolist(), polygons_of(labels), strict=True):
        rings = [simplified(ring) for part in parts for ring in (part.outer, *part.holes)]
        flat = [np.rint(ring).astype(int).ravel().tolist() for ring in rings]
        entries.append({"label": label, "point": _inner_point(labels, label, box), "rings": flat})
    return entries


def _inner_point(labels: np.ndarray, label: int, box: list[int]) -> list[float]:
    """Returns x and y of the pixel center that is furthest from the border of a nucleus."""
    top, left, bottom, right = box
    inside = np.pad(labels[top:bottom, left:right] == label, 1)
    depth = distance_to_border(inside)
    row, column = np.unravel_index(int(depth.argmax()), depth.shape)
    return [left + int(column) - 0.5, top + int(row) - 0.5]
