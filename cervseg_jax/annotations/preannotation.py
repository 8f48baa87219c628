"""Folders of suggested images: what was written into their annotation files, to tell which a person has corrected."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cervseg_jax.annotations.labelme import is_labelme, parse_labelme
from cervseg_jax.annotations.objects import Annotation, parse_json
from cervseg_jax.data.decode import read_bytes
from cervseg_jax.data.pairs import stem_of
from cervseg_jax.errors import DataError
from cervseg_jax.files import sha256_of, write_text
from cervseg_jax.tables import csv_text, read_csv

SUGGESTIONS = "suggestions.csv"
CHECKED = "checked"
"""Flag of an annotation file by which a person says: nothing to correct."""
DECIMALS = 2
"""Digits of coordinates that count for `outlines_digest`."""


class Suggestion(NamedTuple):
    """A row of `suggestions.csv`: an image of the folder, and where it comes from."""

    order: int
    """1 for the image to correct first."""
    image: str
    """File name in the folder; the annotation has the same stem."""
    source: str
    """Path of the file that it comes from."""
    source_sha256: str
    top: int
    left: int
    """Position in the source."""
    height: int
    width: int
    source_height: int
    source_width: int
    num_nuclei: int
    """Nuclei in the pre-annotation."""
    uncertainty: float
    distance: float
    score: float
    reason: str
    """Why it was chosen, in words."""
    written: str
    """`outlines_digest` of the pre-annotation; of each one, separated by blanks, if there were several."""

    @property
    def source_stem(self) -> str:
        """Stem of the source, which names the group of a crop where nothing else does."""
        return stem_of(Path(self.source))


def read_suggestions(folder: Path) -> dict[str, Suggestion]:
    """Reads the list of a folder, by stem of the image; empty if there is none.

    Raises:
      DataError: if it is damaged.
    """
    path = folder / SUGGESTIONS
    if not path.is_file():
        return {}
    suggestions = {}
    for number, row in enumerate(read_csv(path, columns=("image", "source", "written")), start=2):
        try:
            values = {name: kind(row[name]) for name, kind in Suggestion.__annotations__.items()}
        except (KeyError, ValueError) as error:
            raise DataError(f"{path}: row {number} is damaged: {error}") from None
        suggestions[stem_of(Path(row["image"]))] = Suggestion(**values)
    return suggestions


def write_suggestions(folder: Path, suggestions: Iterable[Suggestion]) -> None:
    """Writes the list of a folder."""
    write_text(folder / SUGGESTIONS, csv_text(Suggestion._fields, suggestions))


def outlines_digest(annotation: Annotation) -> str:
    """Returns a hash of outlines, labels and groups, which other programs keep when they save a file unchanged."""
    objects = [
        [entry.label, entry.group, [np.round(ring, DECIMALS).tolist() for ring in entry.rings]]
        for entry in annotation.objects
    ]
    return sha256_of(json.dumps(objects).encode())[:16]


def state_of(path: Path, suggestion: Suggestion | None) -> str:
    """Tells whether a person has looked at an annotation file.

    Args:
      path: a LabelMe file.
      suggestion: what was written; None for a file that is not of `suggest`.

    Returns:
      "corrected" if its outlines differ from what was written, nothing was written, or it is damaged; "checked" if they
      are as written and the flag is set; else "untouched".
    """
    if suggestion is None or not holds_outlines(path, *suggestion.written.split()):
        return "corrected"
    return "checked" if is_checked(parse_json(read_bytes(path), source=path)) else "untouched"


def holds_outlines(path: Path, *digests: str) -> bool:
    """Whether a file is LabelMe JSON whose outlines have one of the digests, see `outlines_digest`."""
    try:
        document = parse_json(read_bytes(path), source=path)
        return is_labelme(document) and outlines_digest(parse_labelme(document, source=path)) in digests
    except DataError:
        return False


def is_checked(document: Mapping[str, Any]) -> bool:
    """Whether the flag `checked` of a LabelMe document is set."""
    flags = document.get("flags")
    return isinstance(flags, dict) and flags.get(CHECKED) is True
