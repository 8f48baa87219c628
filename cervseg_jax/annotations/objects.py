"""The form that every annotation format is read into: objects with an outline, a label, a kind, a group and a flag."""

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from cervseg_jax.annotations.outlines import Rings
from cervseg_jax.errors import DataError

MAX_COORDINATE = 1e6


class Note(NamedTuple):
    """A remark on one or several entries that are used differently from how they are written."""

    message: str
    subject: str
    """File and entry; of several entries with the same message, the first."""
    num_entries: int = 1

    def __str__(self) -> str:
        """Returns the remark as one line."""
        if self.num_entries == 1:
            return f"{self.subject}: {self.message}"
        return f"{self.message} ({self.num_entries} times, first in {self.subject})"


class AnnotatedObject(NamedTuple):
    """One entry of an annotation file."""

    name: str
    """File and entry, for messages."""
    rings: Rings
    """Outline at full extent, in the image's coordinates; even-odd rule."""
    label: str = ""
    """Class name; empty where there is none."""
    kind: str = ""
    """QuPath's object type ("annotation", "detection", "cell", "tile" ...); empty in other formats."""
    group: int | str | None = None
    """Entries of equal label and group are parts or holes of one object."""
    is_crowd: bool = False
    """Whether the outline covers several objects that are not separated (COCO)."""


class Annotation(NamedTuple):
    """The annotated objects of one image."""

    objects: list[AnnotatedObject]
    image_path: str | None = None
    """Path of the image as the file gives it, where the format has one."""
    size: tuple[int, int] | None = None
    """Height and width of the image according to the file."""
    notes: list[Note] = []
    """Remarks on entries that were left out or read differently."""
    problems: list[str] = []
    """Entries that cannot be read, one message each."""
    embeds_image: bool = False
    """Whether the file holds the picture itself (LabelMe's imageData)."""

    @property
    def image_name(self) -> str | None:
        """File name of the image without its folder."""
        return Path(self.image_path.replace("\\", "/")).name if self.image_path else None


def tally(notes: Iterable[Note]) -> list[Note]:
    """Merges notes of equal message, in the order of their first occurrence.

    Example:
      >>> [str(note) for note in tally([Note("has no area", "a: shape 1"), Note("has no area", "a: shape 2")])]
      ['has no area (2 times, first in a: shape 1)']
    """
    merged: dict[str, Note] = {}
    for note in notes:
        known = merged.get(note.message)
        num_entries = note.num_entries + (0 if known is None else known.num_entries)
        merged[note.message] = (known or note)._replace(num_entries=num_entries)
    return list(merged.values())


def read_objects(
    items: Iterable[Any], read: Callable[[Any, str, list[Note]], AnnotatedObject | None], *, name: str
) -> Annotation:
    """Reads a list of objects; a damaged one is a problem of its own and does not affect the others.

    Args:
      items: parsed JSON of the objects.
      read: function from an item, its name and a list to which it adds notes, to the object; None to leave it out.
      name: start of the items' names; their 1-based index is added.

    Returns:
      The annotation, without path and size of the image.
    """
    objects: list[AnnotatedObject] = []
    notes: list[Note] = []
    problems: list[str] = []
    for index, item in enumerate(items, start=1):
        try:
            found = read(item, f"{name} {index}", notes)
        except DataError as error:
            problems.append(str(error))
            continue
        if found is not None:
            objects.append(found)
    return Annotation(objects, notes=tally(notes), problems=problems)


def parse_json(data: bytes, *, source: Path) -> Any:
    """Parses JSON text in UTF-8, UTF-16 or UTF-32.

    QuPath and pandas write NaN and Infinity, which JSON lacks. They are returned as numbers, so that only entries whose
    outlines hold them are bad.

    Raises:
      DataError: if the text is not valid JSON, or is nested too deeply.
    """
    try:
        return json.loads(data.decode(json.detect_encoding(data)))
    except UnicodeDecodeError:
        raise DataError(f"{source}: is not text in UTF-8 or UTF-16") from None
    except RecursionError:
        raise DataError(f"{source}: is nested too deeply") from None
    except ValueError as error:
        raise DataError(f"{source}: is not valid JSON: {error}") from None


def as_ring(points: Any, *, name: str) -> Float[np.ndarray, "points 2"]:
    """Checks a list of points.

    Args:
      points: value from the file.
      name: file and entry, for messages.

    Returns:
      Float [n, 2] with x and y; n may be too small for an area.

    Raises:
      DataError: if the points are not pairs of finite numbers in a sensible range.
    """
    pairs = isinstance(points, list) and all(isinstance(point, list | tuple) and len(point) >= 2 for point in points)
    if not pairs or not {type(value) for point in points for value in point[:2]} <= {int, float}:
        raise DataError(f"{name}: its points are not a list of [x, y] numbers")
    try:
        ring = np.array([point[:2] for point in points], np.float64).reshape(-1, 2)
    except OverflowError:  # an integer of hundreds of digits
        ring = np.array([[math.inf, math.inf]])
    if not (np.abs(ring) <= MAX_COORDINATE).all():
        raise DataError(f"{name}: has a coordinate beyond {MAX_COORDINATE:.0f}, or one that is not a number")
    return ring


def too_few_points(kind: str, count: int) -> str:
    """Returns the remark on an outline with fewer points than an area needs."""
    return f"a {kind} of {count} point{'' if count == 1 else 's'} has no area and is left out"
