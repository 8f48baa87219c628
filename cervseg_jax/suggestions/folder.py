"""The folder in which suggested images are corrected: pictures, pre-annotations in LabelMe's format, and a list."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from cervseg_jax.annotations.labelme import LabeledOutline, is_labelme, labelme_document, parse_labelme
from cervseg_jax.annotations.objects import parse_json
from cervseg_jax.annotations.outlines import Ring
from cervseg_jax.annotations.polygons import Polygon
from cervseg_jax.annotations.preannotation import (
    CHECKED,
    SUGGESTIONS,
    Suggestion,
    is_checked,
    outlines_digest,
    read_suggestions,
    write_suggestions,
)
from cervseg_jax.data.decode import read_bytes
from cervseg_jax.data.pairs import stem_of
from cervseg_jax.errors import ConfigError, DataError
from cervseg_jax.files import make_folder, refuse_filled_folder, write_bytes, write_text

TOLERANCE_PX = 0.8
"""Corners that move an outline by less are left out: outlines along pixel edges have too many to be edited."""


class Prepared(NamedTuple):
    """A suggested image, ready to be written."""

    suggestion: Suggestion
    """Its row of the list; `written` holds the digest of this pre-annotation."""
    picture: bytes
    annotation: str
    """Text of the LabelMe file."""


class Written(NamedTuple):
    """What became of the annotation files."""

    num_written: int
    kept: list[str]
    """Files that a person has changed, or made; they were left as they are."""


def open_folder(out: Path) -> dict[str, Suggestion]:
    """Returns the list of a folder that `suggest` wrote, by stem; empty for a new one.

    Raises:
      ConfigError: if the folder holds other files.
      DataError: if its list is damaged.
    """
    if not (out / SUGGESTIONS).is_file():
        refuse_filled_folder(out, shown=f"--out: {out}")
    return read_suggestions(out)


def preannotation(
    polygons: Sequence[Sequence[Polygon]], *, label: str, image_path: str, shape: tuple[int, int]
) -> tuple[str, str]:
    """Returns the text of a LabelMe file with an editable outline for each nucleus, and its digest.

    Args:
      polygons: parts of each nucleus, along pixel edges.
      label: class of all nuclei.
      image_path: name of the image, relative to the file.
      shape: height and width of the image.
    """
    outlines = [
        LabeledOutline([simplified(ring) for part in parts for ring in (part.outer, *part.holes)], label)
        for parts in polygons
    ]
    text = labelme_document(outlines, image_path=image_path, shape=shape, flags={CHECKED: False})
    document = parse_json(text.encode(), source=Path(image_path))
    return text, outlines_digest(parse_labelme(document, source=Path(image_path)))


def simplified(ring: Ring) -> np.ndarray:
    """Returns a ring with fewer corners, none further than `TOLERANCE_PX` from it.

    Reference: Douglas and Peucker 1973, doi:10.3138/FM57-6770-U75U-7727.

    Example:
      >>> stairs = np.array([[0, 0], [2, 0], [2, 1], [3, 1], [3, 2], [4, 2], [4, 6], [0, 6.0]])
      >>> len(simplified(stairs))
      5
    """
    corners = cv2.approxPolyDP(np.asarray(ring, np.float32)[:, None], TOLERANCE_PX, True)[:, 0]
    return corners.astype(np.float64) if len(corners) >= 3 else np.asarray(ring, np.float64)


def write_folder(out: Path, images: Sequence[Prepared], earlier: dict[str, Suggestion]) -> Written:
    """Writes pictures, annotations and the list. An annotation that a person has touched is never written over.

    The list comes first and names both the earlier and the new pre-annotation, so that after a kill neither is taken
    for a correction.

    Args:
      out: the folder.
      images: in the order of the list.
      earlier: the list that the folder has, see `open_folder`.

    Returns:
      How many annotations were written, and which were kept.

    Raises:
      ConfigError: if the folder has another picture of the same name.
    """
    make_folder(out)
    for image in images:
        picture = out / image.suggestion.image
        if picture.exists() and picture.read_bytes() != image.picture:
            raise ConfigError(f"--out: {picture} is another picture than the one suggested; choose another folder")
    merged = []
    for image in images:
        before = earlier.get(stem_of(Path(image.suggestion.image)))
        digests = [] if before is None else before.written.split()
        written = " ".join(dict.fromkeys([*digests, image.suggestion.written]))
        merged.append(image.suggestion._replace(written=written))
    names = {suggestion.image for suggestion in merged}
    rest = [suggestion for suggestion in earlier.values() if suggestion.image not in names]
    rest.sort(key=lambda suggestion: suggestion.order)
    numbered = [entry._replace(order=order) for order, entry in enumerate([*merged, *rest], start=1)]
    write_suggestions(out, numbered)
    kept, num_written = [], 0
    for image, suggestion in zip(images, merged, strict=True):
        path = out / f"{Path(suggestion.image).stem}.json"
        write_bytes(out / suggestion.image, image.picture, durable=False)
        if path.exists() and _is_touched(path, suggestion, image.annotation):
            kept.append(path.name)
        else:
            write_text(path, image.annotation)
            num_written += 1
    return Written(num_written, kept)


def _is_touched(path: Path, suggestion: Suggestion, text: str) -> bool:
    """Whether a person has changed an annotation file, ticked its flag, or made it."""
    data = read_bytes(path)
    if data == text.encode():
        return False
    try:
        document = parse_json(data, source=path)
    except DataError:
        return True
    if not is_labelme(document) or is_checked(document):
        return True
    return outlines_digest(parse_labelme(document, source=path)) not in suggestion.written.split()
