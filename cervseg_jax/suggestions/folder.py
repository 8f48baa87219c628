"""The folder in which suggested images are corrected: pictures, pre-annotations in LabelMe's format, and a list."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cervseg_jax.annotations.labelme import LabeledOutline, labelme_document, parse_labelme
from cervseg_jax.annotations.objects import parse_json
from cervseg_jax.annotations.polygons import Polygon, simplified
from cervseg_jax.annotations.preannotation import (
    CHECKED,
    SUGGESTIONS,
    Suggestion,
    holds_outlines,
    outlines_digest,
    read_suggestions,
    state_of,
    write_suggestions,
)
from cervseg_jax.data.pairs import stem_of
from cervseg_jax.errors import ConfigError
from cervseg_jax.files import make_folder, refuse_filled_folder, write_bytes, write_text


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
        state = state_of(path, suggestion) if path.exists() else "missing"
        if state in ("corrected", "checked"):
            kept.append(path.name)
        elif state == "missing" or not holds_outlines(path, image.suggestion.written):
            write_text(path, image.annotation)
            num_written += 1
    return Written(num_written, kept)
