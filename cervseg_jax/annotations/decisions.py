"""A person's decisions about predicted images and nuclei, as the reviewing page saves them.

A decision about a nucleus names a point inside of it. It applies to whatever nucleus covers that point, in a prediction
or in an annotation of the same image, whatever number it has there.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import cv2
import numpy as np

from cervseg_jax.annotations.nuclei import Nucleus
from cervseg_jax.annotations.outlines import Rings, rasterize
from cervseg_jax.data.pairs import normalized, stem_of
from cervseg_jax.errors import ConfigError, DataError
from cervseg_jax.files import read_json_object

FORMAT = "cervseg-jax decisions"
"""Value of `format` in the file."""

Verdict = Literal["accepted", "rejected", "flagged"]
Point = tuple[float, float]
"""x and y in pixels of the image; pixel centers are at halves."""


class NucleusDecision(NamedTuple):
    """A decision about the nucleus that covers a point."""

    point: Point
    verdict: Verdict


class ImageDecisions(NamedTuple):
    """The decisions about an image and its nuclei."""

    name: str
    """Name of its results in the inference folder."""
    file: Path | None
    """The image file that was predicted."""
    verdict: Verdict | None
    """About the whole image."""
    nuclei: list[NucleusDecision]

    @property
    def is_flagged(self) -> bool:
        """Whether the image or one of its nuclei is flagged."""
        return "flagged" in (self.verdict, *(nucleus.verdict for nucleus in self.nuclei))

    def rejected(self, *, top: int = 0, left: int = 0) -> list[Point]:
        """Returns the points of rejected nuclei, relative to a corner of a window."""
        return [(x - left, y - top) for (x, y), verdict in self.nuclei if verdict == "rejected"]


class Decisions(NamedTuple):
    """The content of a file of decisions."""

    path: Path
    images: list[ImageDecisions]

    def about(self, image: Path) -> ImageDecisions | None:
        """Returns the decisions about an image: those about this very file, or else about a file of the same stem.

        Raises:
          DataError: if several other files have its stem.
        """
        place = image.resolve()
        for entry in self.images:
            if entry.file is not None and entry.file.resolve() == place:
                return entry
        alike = [entry for entry in self.images if stem_of(entry.file or Path(f"{entry.name}.png")) == stem_of(image)]
        if len(alike) > 1:
            raise DataError(
                f"{self.path}: has decisions about several images named {stem_of(image)}; which is {image}?"
            )
        return alike[0] if alike else None


def read_decisions(path: Path) -> Decisions:
    """Reads `decisions.json` of a reviewing page.

    Raises:
      ConfigError: if there is no such file.
      DataError: if it holds something else, naming the entry.
    """
    if not path.is_file():
        raise ConfigError(f"--decisions: no such file: {path}")
    content = read_json_object(path)
    if content.get("format") != FORMAT or not isinstance(content.get("images"), list):
        raise DataError(f"{path}: holds no decisions of a reviewing page (format: {FORMAT!r} and a list of images)")
    return Decisions(
        path, [_read_image(entry, f"{path}: image {index}") for index, entry in enumerate(content["images"], 1)]
    )


def _read_image(entry: Any, where: str) -> ImageDecisions:
    if not isinstance(entry, dict) or not isinstance(entry.get("image"), str):
        raise DataError(f"{where}: has no name")
    file, nuclei = entry.get("file"), entry.get("nuclei", [])
    if not isinstance(nuclei, list) or not (file is None or isinstance(file, str)):
        raise DataError(f"{where}: nuclei must be a list, and file a path")
    return ImageDecisions(
        normalized(entry["image"]),
        Path(file) if file else None,
        None if entry.get("decision") is None else _verdict(entry["decision"], where),
        [_read_nucleus(nucleus, f"{where}, nucleus {index}") for index, nucleus in enumerate(nuclei, 1)],
    )


def _read_nucleus(nucleus: Any, where: str) -> NucleusDecision:
    place: list[Any] = [nucleus.get(axis) for axis in "xy"] if isinstance(nucleus, dict) else []
    if len(place) != 2 or not all(type(value) in (int, float) and math.isfinite(value) for value in place):
        raise DataError(f"{where}: has no point x, y")
    return NucleusDecision((float(place[0]), float(place[1])), _verdict(nucleus.get("decision"), where))


def _verdict(value: Any, where: str) -> Verdict:
    if value not in get_args(Verdict):
        raise DataError(f"{where}: decision must be one of {', '.join(get_args(Verdict))}, got {value!r}")
    return value


def covers(rings: Rings, points: Sequence[Point]) -> bool:
    """Whether the pixel of one of the points belongs to an outline.

    Example:
      >>> square = [np.array([[0, 0], [4, 0], [4, 4], [0, 4.0]])]
      >>> covers(square, [(3.5, 0.5)]), covers(square, [(4.5, 0.5)])
      (True, False)
    """
    corners = (np.floor(np.array(point)) for point in points)
    return any(rasterize([ring - corner for ring in rings], shape=(1, 1)).inside.any() for corner in corners)


def labels_at(labels: np.ndarray, points: Sequence[Point]) -> set[int]:
    """Returns the labels of the nuclei that cover points; points on background or beyond the image have none.

    Example:
      >>> labels_at(np.array([[0, 7]]), [(1.5, 0.5), (0.5, 0.5), (9, 9)])
      {7}
    """
    height, width = labels.shape
    places = [(math.floor(y), math.floor(x)) for x, y in points]
    return {int(labels[row, column]) for row, column in places if 0 <= row < height and 0 <= column < width} - {0}


def remaining_nuclei(nuclei: Sequence[Nucleus], points: Sequence[Point]) -> list[Nucleus]:
    """Returns the nuclei that cover none of the points."""
    return [nucleus for nucleus in nuclei if not covers(nucleus.rings, points)]


def remaining_labels(labels: np.ndarray, points: Sequence[Point], *, has_instances: bool = True) -> np.ndarray:
    """Returns a label map or mask without the nuclei that cover points.

    Args:
      labels: integers [h, w].
      points: see `ImageDecisions.rejected`.
      has_instances: whether touching nuclei have different values; in a mask, the connected component is removed.

    Example:
      >>> remaining_labels(np.array([[1, 0, 2]]), [(2.5, 0.5)]).tolist()
      [[1, 0, 0]]
    """
    if not points:
        return labels
    nuclei = labels if has_instances else cv2.connectedComponents((labels > 0).astype(np.uint8), connectivity=4)[1]
    return np.where(np.isin(nuclei, list(labels_at(nuclei, points))), 0, labels).astype(labels.dtype)
