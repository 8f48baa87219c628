"""The annotation of one image as nuclei, as a label map or as a mask."""

from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cervseg_jax.annotations.decisions import remaining_labels, remaining_nuclei
from cervseg_jax.annotations.nuclei import Nucleus, select_nuclei
from cervseg_jax.annotations.objects import Note
from cervseg_jax.annotations.reader import read_annotation
from cervseg_jax.choices import Crowd, MaskRule
from cervseg_jax.curation.collect import SourceImage
from cervseg_jax.data.covered_files import FOLDER, load_covered
from cervseg_jax.data.decode import read_bytes, read_mask
from cervseg_jax.data.label_files import read_labels
from cervseg_jax.errors import DataError

LABEL_KINDS = frozenset({"instances", "labels"})


class Truth(NamedTuple):
    """What is annotated in an image: outlines, a label map, or a mask that merges touching nuclei."""

    nuclei: list[Nucleus] | None = None
    labels: np.ndarray | None = None
    """int32 [h, w]."""
    has_instances: bool = True
    """Whether touching nuclei are told apart."""
    stated_size: tuple[int, int] | None = None
    """Height and width of the image according to the annotation."""
    label_counts: Counter[str] = Counter()
    """Number of nuclei by class, before the choice of classes."""
    notes: list[Note] = []
    problems: list[str] = []
    """Entries that cannot be read and are missing from `nuclei`."""
    covered: tuple[np.ndarray, ...] = ()
    """Label maps of the nuclei that others partly cover, whole; see `extents`."""


def read_truth(item: SourceImage, *, mask_rule: MaskRule, labels: tuple[str, ...] = (), crowd: Crowd = "drop") -> Truth:
    """Reads the annotation of an image, without nuclei that a person has rejected.

    Args:
      item: the image.
      mask_rule: how masks are read, see `decode_mask`.
      labels: classes to keep, see `select_nuclei`.
      crowd: what becomes of crowds, see `select_nuclei`.

    Returns:
      Nuclei, labels or a mask; what was left out; and notes.

    Raises:
      DataError: if the file is bad.
    """
    if item.kind == "masks":
        mask, num_levels = read_mask(item.annotation_path, rule=mask_rule)
        notes = [Note(_LEVELS[mask_rule], str(item.annotation_path))] if num_levels > 2 else []
        labels_of_mask = remaining_labels(mask.astype(np.int32), item.rejected, has_instances=False)
        return Truth(labels=labels_of_mask, has_instances=False, stated_size=_size(mask), notes=notes)
    if item.kind in LABEL_KINDS:
        values, _ = read_labels(item.annotation_path, rule=mask_rule)
        values = remaining_labels(values, item.rejected)
        return Truth(labels=values, covered=_covered(item.annotation_path, values), stated_size=_size(values))
    annotation = item.annotation
    if annotation is None:
        annotation = read_annotation(read_bytes(item.annotation_path), source=item.annotation_path)
    nuclei, counts, notes = select_nuclei(annotation, labels=labels, crowd=crowd)
    nuclei = remaining_nuclei(nuclei, item.rejected)
    return Truth(nuclei, None, True, annotation.size, counts, notes, annotation.problems)


_LEVELS: dict[MaskRule, str] = {
    "half_range": "a mask of more than two levels, as lossy files have; from half range on it is nucleus (half_range)",
    "any_nonzero": "a mask of more than two levels; every value but zero is nucleus and enlarges it (any_nonzero)",
    "value_1": "a mask of more than two levels; the value 1 is nucleus, all others are background (value_1)",
}


def _covered(labels_path: Path, labels: np.ndarray) -> tuple[np.ndarray, ...]:
    """Reads the covered nuclei that a dataset keeps beside its label maps; none where there is no such file."""
    path = labels_path.parent.with_name(FOLDER) / f"{labels_path.stem}.npz"
    covered = load_covered(path) if path.is_file() else ()
    if covered and covered[0].shape != labels.shape:
        raise DataError(f"{path}: its size is not that of {labels_path}")
    return covered


def _size(values: np.ndarray) -> tuple[int, int]:
    return values.shape[0], values.shape[1]
