"""Settings of a dataset and the structures that its makers share."""

from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cervseg_jax.choices import AnnotationKind, BitDepth, Crowd, MaskRule, OnBadFile, Outlines
from cervseg_jax.curation.collect import SourceImage
from cervseg_jax.curation.geometry import Geometry
from cervseg_jax.data.label_files import LabelStats


class Recipe(NamedTuple):
    """Everything that determines a dataset, apart from its source."""

    geometry: Geometry = Geometry()
    annotations: AnnotationKind | None = None
    """Kind of annotations to take where the source has several; None: the first that `collect` finds."""
    labels: tuple[str, ...] = ()
    """Classes of nuclei to keep, with the classes derived from them; empty keeps all."""
    outlines: Outlines = "auto"
    crowd: Crowd = "drop"
    mask_rule: MaskRule = "half_range"
    bit_depth: BitDepth = "auto"
    """Bits of the values in 16-bit images, see `decode_image`; "auto": the most that any image of the source uses."""
    valid: float = 0.15
    """Share of the groups for validation."""
    test: float = 0.15
    """Share of the groups for testing, if the authors of the dataset define no test split; 1: all, in any case."""
    seed: int = 0
    group_pattern: str | None = None
    groups_csv: Path | None = None
    folds: int = 0
    """Number of folds for cross-validation; 0 for none."""
    fold: int = 0
    """The fold that becomes the validation split."""
    keep_near_duplicates_together: bool = True
    variants: int = 0
    """Augmented copies of each training image, by `VARIANT_OPERATIONS`; valid and test hold originals only."""
    on_bad_file: OnBadFile = "fail"


class ScannedImage(NamedTuple):
    """Result of the first pass over an image and its annotation."""

    item: SourceImage
    size: tuple[int, int]
    sha256: str
    hashes: np.ndarray
    """Perceptual hashes, see `perceptual_hash`."""
    label_counts: Counter[str] = Counter()
    """Nuclei by class; empty for label maps and masks."""
    label_stats: LabelStats | None = None
    """Properties of a label file, by which label maps are told from masks."""
    bits: int | None = None
    """Bits that the values of a 16-bit image use; None for 8-bit images."""
    problems: tuple[str, ...] = ()
    """Entries of the annotation that cannot be read."""


class Assignment(NamedTuple):
    """Split and group of an image."""

    split: str
    group: str
    fold: int
    """Fold for cross-validation, or -1 for test images and without folds."""
