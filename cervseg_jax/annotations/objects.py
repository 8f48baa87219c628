"""What all annotation formats come down to: nuclei with a label and an outline."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cervseg_jax.annotations.outlines import Rings
from cervseg_jax.errors import DataError

MAX_COORDINATE = 1e6


class Nucleus(NamedTuple):
    """One annotated nucleus."""

    label: str
    rings: Rings
    """Outline at full extent, in the image's coordinates; even-odd rule."""


class Annotation(NamedTuple):
    """The nuclei of one image."""

    nuclei: list[Nucleus]
    image_name: str | None = None
    """File name of the image, without its folder, where the format names it."""
    size: tuple[int, int] | None = None
    """Height and width that the annotation claims."""
    notes: list[str] = []
    """What was left out, one message each."""


def parse_json(data: bytes, *, source: Path) -> Any:
    """Parses JSON text in UTF-8.

    Raises:
      DataError: if it is not valid, nested too deeply, or holds numbers that are none.
    """
    try:
        return json.loads(data.decode("utf-8-sig"), parse_constant=_no_constant)
    except UnicodeDecodeError:
        raise DataError(f"{source}: is not text in UTF-8") from None
    except RecursionError:
        raise DataError(f"{source}: is nested too deeply") from None
    except ValueError as error:
        raise DataError(f"{source}: is not valid JSON: {error}") from None


def as_ring(points: Any, *, name: str, at_least: int = 3) -> np.ndarray:
    """Checks the points of a ring.

    Args:
      points: what the file holds.
      name: file and shape, for messages.
      at_least: fewest points that make sense.

    Returns:
      Float [n, 2] with x and y.

    Raises:
      DataError: if they are not pairs of ordinary numbers, or too few.
    """
    pairs = isinstance(points, list) and all(isinstance(point, list | tuple) and len(point) >= 2 for point in points)
    if not pairs or not {type(value) for point in points for value in point[:2]} <= {int, float}:
        raise DataError(f"{name}: its points are not a list of [x, y] numbers")
    if len(points) < at_least:
        raise DataError(f"{name}: has {len(points)} points, at least {at_least} are needed")
    try:
        ring = np.array([point[:2] for point in points], np.float64)
    except OverflowError:  # a whole number of hundreds of digits
        ring = np.array([[math.inf, math.inf]])
    if not (np.abs(ring) <= MAX_COORDINATE).all():
        raise DataError(f"{name}: has a coordinate beyond {MAX_COORDINATE:.0f}, or one that is no number")
    return ring


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no JSON number")
