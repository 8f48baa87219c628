"""JSON documents in pieces, and the boxes that writers take from a table of nuclei.

A slide has hundreds of thousands of nuclei. Documents are therefore written piece by piece, and each nucleus is looked
up in the label map within its own bounding box.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Shaped

from cervseg_jax.extents import Extent
from cervseg_jax.label_maps import Labels

Columns = Mapping[str, Shaped[np.ndarray, " nuclei"]]
"""Measurements by column name, one row per nucleus, as `morphometry.measure` returns them."""


def json_with_list(head: Mapping[str, Any], key: str, items: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Yields the JSON text of `head` with one more key, which holds a list of any length."""
    yield json.dumps(head, allow_nan=False).removesuffix("}") + f', "{key}": ['
    separator = "\n"
    for item in items:
        yield separator + json.dumps(item, allow_nan=False)
        separator = ",\n"
    yield "\n]}\n"


def crops(labels: Labels, table: Columns) -> Iterator[Extent]:
    """Yields the pixels of each nucleus within its bounding box."""
    for row, label in enumerate(table["label"]):
        top, left = int(table["top"][row]), int(table["left"][row])
        bottom, right = top + int(table["height"][row]), left + int(table["width"][row])
        yield Extent(top, left, np.asarray(labels[top:bottom, left:right] == label))
