"""Rules by which the objects of an annotation become nuclei; every rule that applies leaves a note."""

import difflib
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from cervseg_jax.annotations.objects import AnnotatedObject, Annotation, Note, tally
from cervseg_jax.annotations.outlines import Rings, enclosed_area, join_parts
from cervseg_jax.choices import Crowd

DETECTIONS = frozenset({"detection", "cell"})
NOT_NUCLEI = {"tile": "a tile", "tma_core": "a TMA core", "root": "the root object"}
REGION_RATIO = 10
"""An annotation this many times larger than the annotations in it is a region."""


class Nucleus(NamedTuple):
    """One annotated nucleus."""

    name: str
    """File and entry, for messages."""
    label: str
    rings: Rings
    """Outline at full extent, in the image's coordinates; even-odd rule."""


class Selection(NamedTuple):
    """Nuclei of one image."""

    nuclei: list[Nucleus]
    label_counts: Counter[str]
    """Number of nuclei by label, before the choice of labels."""
    notes: list[Note]


def select_nuclei(annotation: Annotation, *, labels: Collection[str] = (), crowd: Crowd = "drop") -> Selection:
    """Turns annotated objects into nuclei.

    Entries of equal label and group are joined. Regions, tiles, cores, crowds and QuPath's ignored classes (names that
    end in `*`) are no nuclei; a region is an annotation around detections, around two or more annotations that differ
    from it in class or are much smaller, or a rectangle around one that is much smaller.

    Args:
      annotation: objects of one image.
      labels: classes to keep, see `has_label`; empty keeps all.
      crowd: whether crowds are left out or each is kept as one nucleus.

    Returns:
      The nuclei in the order of the file, the number of nuclei by label, and notes.
    """
    notes = list(annotation.notes)
    objects = [entry for entry in annotation.objects if not _is_left_out(entry, labels, crowd, notes)]
    regions = _regions(objects, notes)
    objects = _join_groups([entry for entry in objects if id(entry) not in regions], notes)
    nuclei = [Nucleus(entry.name, entry.label, entry.rings) for entry in objects]
    counts = Counter(nucleus.label for nucleus in nuclei)
    if labels:
        nuclei = [nucleus for nucleus in nuclei if any(has_label(nucleus.label, wanted) for wanted in labels)]
    return Selection(nuclei, counts, tally(notes))


def has_label(label: str, wanted: str) -> bool:
    """Whether a class is the wanted one or derived from it.

    Example:
      >>> has_label("Tumor: Positive", "Tumor"), has_label("Tumor", "Tumor: Positive"), has_label("tumor", "Tumor")
      (True, False, False)
    """
    return label == wanted or label.startswith(f"{wanted}: ")


def list_labels(counts: Mapping[str, int]) -> str:
    """Returns labels with their counts, most frequent first.

    Example:
      >>> list_labels({"Tumor": 3, "": 12})
      "(no label): 12, 'Tumor': 3"
    """
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{repr(label) if label else '(no label)'}: {count}" for label, count in ordered) or "none"


def missing_label_message(wanted: str, counts: Mapping[str, int]) -> str:
    """Returns what is wrong with a label that no nucleus has: near misses, and the labels that there are."""
    near = [label for label in counts if _plain(wanted) in map(_plain, (label, *label.split(": ")))]
    if not near:
        near = difflib.get_close_matches(wanted, [label for label in counts if label], n=1)
    guess = f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""
    return f"--label: no nucleus has the label {wanted!r}{guess}; labels in the source: {list_labels(counts)}"


def similar_labels(labels: Iterable[str]) -> list[list[str]]:
    """Returns groups of labels that differ only in case, blanks, hyphens or underscores.

    Example:
      >>> similar_labels(["nucleus", "Nucleus ", "debris"])
      [['Nucleus ', 'nucleus']]
    """
    groups: dict[str, list[str]] = {}
    for label in sorted(labels):
        groups.setdefault(_plain(label), []).append(label)
    return [group for group in groups.values() if len(group) > 1]


def _plain(label: str) -> str:
    return "".join(label.casefold().replace("_", " ").replace("-", " ").split())


def _is_left_out(entry: AnnotatedObject, labels: Collection[str], crowd: Crowd, notes: list[Note]) -> bool:
    if entry.kind in NOT_NUCLEI:
        notes.append(Note(f"{NOT_NUCLEI[entry.kind]} is not a nucleus and is left out", entry.name))
        return True
    if entry.label.endswith("*") and entry.label not in labels:
        notes.append(Note(f"the class {entry.label!r}, which QuPath ignores, is left out", entry.name))
        return True
    if entry.is_crowd and crowd == "drop":
        notes.append(Note("a crowd (iscrowd: 1) of nuclei that are not separated is left out; see --crowd", entry.name))
        return True
    if entry.is_crowd:
        notes.append(Note("a crowd (iscrowd: 1) is kept as one nucleus", entry.name))
    return False


def _regions(objects: Sequence[AnnotatedObject], notes: list[Note]) -> set[int]:
    """Returns the ids of annotations that mark a region of the image instead of a nucleus."""
    if not any(entry.kind == "annotation" for entry in objects):
        return set()
    centers = np.array([_center(entry.rings) for entry in objects])
    areas = np.array([enclosed_area(entry.rings) for entry in objects])
    detected = np.array([entry.kind in DETECTIONS for entry in objects])
    by_row = np.argsort(centers[:, 1])
    rows = centers[by_row, 1]
    regions = set()
    for position, entry in enumerate(objects):
        if entry.kind != "annotation":
            continue
        corners = np.concatenate(list(entry.rings))
        first, last = np.searchsorted(rows, (corners[:, 1].min(), corners[:, 1].max()))
        near = by_row[first:last]
        near = near[areas[near] < areas[position]]
        if not len(near):
            continue
        held = near[_contains(entry.rings, centers[near])]
        if detected[held].any():
            if (areas[held[detected[held]]] > areas[position] / 2).any():
                notes.append(Note("an annotation around a detection of its own size: both are taken", entry.name))
                continue
            notes.append(Note("an annotation that contains detections is a region and is left out", entry.name))
            regions.add(id(entry))
        elif _is_region_around(entry, areas[position], [objects[other] for other in held], areas[held]):
            notes.append(Note("an annotation that contains other annotations is a region and is left out", entry.name))
            regions.add(id(entry))
    return regions


def _is_region_around(
    entry: AnnotatedObject, area: float, held: Sequence[AnnotatedObject], held_areas: np.ndarray
) -> bool:
    """Tells a region around annotations from a nucleus around, for example, its nucleolus."""
    if not held:
        return False
    is_much_larger = area >= REGION_RATIO * np.median(held_areas)
    if len(held) == 1:
        return bool(is_much_larger and _is_rectangle(entry.rings))
    return bool(is_much_larger or entry.label not in {other.label for other in held})


def _is_rectangle(rings: Rings) -> bool:
    """Whether an outline is a rectangle along the image's axes."""
    extent = np.ptp(np.concatenate(list(rings)), axis=0)
    return len(rings) == 1 and math.isclose(enclosed_area(rings), extent.prod(), rel_tol=1e-6)


def _center(rings: Rings) -> np.ndarray:
    points = np.concatenate(list(rings))
    return (points.min(axis=0) + points.max(axis=0)) / 2


def _contains(rings: Rings, points: np.ndarray) -> np.ndarray:
    """Tells which points [n, 2] lie inside an outline by the even-odd rule, bool [n]."""
    corners = np.concatenate(list(rings))
    inside = ((points >= corners.min(axis=0)) & (points <= corners.max(axis=0))).all(axis=1)
    candidates = np.flatnonzero(inside)
    if not len(candidates):
        return inside
    x, y = points[candidates].T
    crossings = np.zeros(len(candidates), bool)
    for ring in rings:
        for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
            if y0 != y1:
                crossings ^= ((y0 <= y) != (y1 <= y)) & (x < x0 + (y - y0) / (y1 - y0) * (x1 - x0))
    inside[candidates] = crossings
    return inside


def _join_groups(objects: Sequence[AnnotatedObject], notes: list[Note]) -> list[AnnotatedObject]:
    """Joins entries of equal label and group into one, at the place of the first."""
    joined: dict[object, AnnotatedObject] = {}
    members: Counter[object] = Counter()
    for position, entry in enumerate(objects):
        key = position if entry.group is None else (entry.label, entry.group)
        members[key] += 1
        known = joined.get(key)
        joined[key] = entry if known is None else known._replace(rings=[*known.rings, *entry.rings])
    for key, count in members.items():
        if count > 1:
            entry = joined[key]
            joined[key] = entry._replace(rings=join_parts(entry.rings))
            notes.append(Note("shapes of equal label and group_id are joined into one nucleus", entry.name))
    return list(joined.values())
