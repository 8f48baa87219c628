"""What a dataset is made from and how: the structures that its makers share."""

from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from cervseg_jax.choices import MaskRule
from cervseg_jax.curation.collect import SourceImage
from cervseg_jax.curation.geometry import Geometry


class Recipe(NamedTuple):
    """Everything that decides what a dataset becomes, apart from its source."""

    geometry: Geometry = Geometry()
    labels: tuple[str, ...] = ()
    """Annotations with other labels are left out; empty keeps all."""
    outlines: Literal["drawn", "traced"] = "drawn"
    """Whether coordinates are positions in the image, or name pixels on the border (`from_pixel_centers`)."""
    mask_rule: MaskRule = "half_range"
    valid: float = 0.15
    test: float = 0.15
    """Share of the groups that becomes test, where the makers have no test part."""
    seed: int = 0
    group_pattern: str | None = None
    groups_csv: Path | None = None
    folds: int = 0
    """Number of parts for cross-validation; 0 for none."""
    fold: int = 0
    """The part that is valid."""
    keep_near_duplicates_together: bool = True
    variants: int = 0
    """Augmented copies of each training image, by `VARIANT_OPERATIONS`; valid and test hold originals alone."""
    on_bad_file: str = "fail"


class ScannedImage(NamedTuple):
    """What a first look at an image showed."""

    item: SourceImage
    size: tuple[int, int]
    sha256: str
    hashes: np.ndarray


class Part(NamedTuple):
    """Where an image goes."""

    split: str
    group: str
    fold: int
    """Part for cross-validation, or -1 for test images and where there are no folds."""
