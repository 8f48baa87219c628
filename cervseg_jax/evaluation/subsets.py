"""Subsets of images that get scores of their own: by columns of the manifest, and by properties of the truth."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from cervseg_jax.data.manifest import Record
from cervseg_jax.metrics.bootstrap import bootstrap_mean

MAX_VALUES = 12
"""Columns with more distinct values do not divide the images."""
MIN_IMAGES = 6
"""Fewer images are not divided into thirds."""


class Subset(NamedTuple):
    """The images that share a property."""

    kind: str
    value: str
    rows: np.ndarray
    """Bool [images]."""


def find_subsets(metadata: Sequence[Mapping[str, str]], measures: Mapping[str, np.ndarray]) -> list[Subset]:
    """Finds subsets of images.

    Args:
      metadata: columns of the manifest by name, for each image. `subset` counts, and every column that `prepare` did
        not write, such as a stain.
      measures: one number per image by name, such as the share of nucleus; each divides the images into thirds.

    Returns:
      At least two disjoint subsets per column or measure.
    """
    found = []
    names = sorted({name for row in metadata for name in row} - (set(Record._fields) - {"subset"}))
    for name in names:
        column = np.array([row.get(name, "") or "" for row in metadata])
        values = sorted(set(column.tolist()) - {""})
        if 2 <= len(values) <= MAX_VALUES:
            found += [Subset(name, value, column == value) for value in values]
    for name, numbers in measures.items():
        found += _thirds(name, numbers)
    return found


def summarize_subsets(
    subsets: Sequence[Subset], columns: Mapping[str, np.ndarray], groups: Sequence[str]
) -> list[dict[str, Any]]:
    """Returns the number of images of each subset, and the mean of each column with its 95 % interval."""
    rows = []
    for subset in subsets:
        own = [group for group, inside in zip(groups, subset.rows, strict=True) if inside]
        scores = {name: bootstrap_mean(values[subset.rows], own)._asdict() for name, values in columns.items()}
        rows.append({"kind": subset.kind, "value": subset.value, "num_images": int(subset.rows.sum()), **scores})
    return rows


def _thirds(name: str, numbers: np.ndarray) -> list[Subset]:
    known = numbers[~np.isnan(numbers)]
    if len(known) < MIN_IMAGES:
        return []
    low, high = np.quantile(known, [1 / 3, 2 / 3])
    parts = {
        f"at most {low:.3g}": numbers <= low,
        f"{low:.3g} to {high:.3g}": (numbers > low) & (numbers <= high),
        f"more than {high:.3g}": numbers > high,
    }
    filled = [Subset(name, value, rows) for value, rows in parts.items() if rows.any()]
    return filled if len(filled) > 1 else []
