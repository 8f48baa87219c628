"""Findings of an audit, and what scanning a pair yields."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cervseg_jax.curation.registration import Registration


class Finding(NamedTuple):
    """A defect of a dataset."""

    name: str
    message: str
    effect: str
    """Its effect on scores."""
    files: list[str]


class ScannedPair(NamedTuple):
    """Properties of an image and its mask."""

    split: str
    stem: str
    name: str
    pixels_sha256: str
    hashes: np.ndarray
    mask_levels: int
    area: int
    inflated_area: int
    """Area where every non-zero value counts."""
    bits: int | None
    """Bits that a 16-bit image uses; None for 8-bit files."""
    is_inverted: bool
    """See `data.checks.looks_inverted`."""
    fit: Registration


def add_finding(findings: list[Finding], name: str, files: Sequence[str], message: str, effect: str) -> None:
    """Appends a finding about files; nothing where there are none. The message follows their number."""
    if files:
        findings.append(Finding(name, f"{len(files)} {message}", effect, list(files)))
