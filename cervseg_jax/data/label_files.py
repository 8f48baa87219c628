"""Label maps: images whose values number the nuclei, 0 for background."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from cervseg_jax.choices import MaskRule
from cervseg_jax.data.decode import decode_mask, read_bytes, single_channel
from cervseg_jax.data.headers import is_lossy
from cervseg_jax.data.raw import decode_pixels
from cervseg_jax.errors import DataError

MASK_VALUES = frozenset({255, 65535})
"""Values that mark the nuclei in a mask with a single level."""
IGNORE_VALUES = frozenset({1, 255})
"""Levels of masks whose pixels of value 255 are to be ignored."""
MAX_CHECKED_LABELS = 200


class LabelStats(NamedTuple):
    """Properties of one file that distinguish label maps from masks."""

    levels: frozenset[int]
    """Values above zero; only the lowest three if there are more."""
    num_checked: int
    """Labels whose pixels were checked for connectivity."""
    num_fragmented: int
    """Checked labels whose pixels are not connected."""
    is_lossy: bool


def read_labels(path: Path, *, rule: MaskRule = "half_range") -> tuple[np.ndarray, bool]:
    """Reads a file of a dataset's `instances`: a label map, or a mask if the nuclei were not annotated one by one.

    A JPEG, or a file whose only value above 0 is 255 or 65535, is a mask. Other files are label maps: integers of any
    width, or the palette indices of a PNG.

    Args:
      path: the file.
      rule: how a mask is read, see `decode_mask`.

    Returns:
      int32 [h, w] with 0 for background, and whether touching nuclei have different values.

    Raises:
      DataError: if the file is damaged, in color, or has values that are negative or not whole.
    """
    data = read_bytes(path)
    values = None if is_lossy(data) else _label_values(data, source=path)
    if values is None or (values.any() and set(np.unique(values).tolist()) - {0} <= MASK_VALUES):
        return decode_mask(data, source=path, rule=rule).mask.astype(np.int32), False
    return values, True


def label_stats(path: Path) -> tuple[LabelStats, tuple[int, int]]:
    """Reads a file that holds a label map or a mask.

    Returns:
      Its properties, and its height and width.

    Raises:
      DataError: if the file is damaged, in color, or has values that are negative or not whole.
    """
    data = read_bytes(path)
    if is_lossy(data):
        mask = decode_mask(data, source=path).mask
        return LabelStats(frozenset({255}), 0, 0, is_lossy=True), (mask.shape[0], mask.shape[1])
    values = _label_values(data, source=path)
    levels, labels = np.unique(values, return_inverse=True)
    labels = labels.reshape(values.shape) + (0 if levels[0] == 0 else 1)
    boxes = ndimage.find_objects(labels, max_label=MAX_CHECKED_LABELS)
    pieces = [
        ndimage.label(labels[box] == label, np.ones((3, 3)))[1]  # pyright: ignore[reportIndexIssue]
        for label, box in enumerate(boxes, start=1)
        if box is not None
    ]
    lowest = frozenset(int(level) for level in levels[levels > 0][:3])
    stats = LabelStats(lowest, len(pieces), sum(count > 1 for count in pieces), is_lossy=False)
    return stats, (values.shape[0], values.shape[1])


def are_label_maps(files: Sequence[LabelStats]) -> bool:
    """Decides for a whole folder whether its files are label maps; otherwise they are masks.

    They are masks if any file is lossy, if the only values are 255 and 65535, if the values are 1 and 255 (ignored), or
    if most labels are in several pieces, which indicates classes.

    Args:
      files: properties of all files in the folder.
    """
    levels = frozenset[int]().union(*(file.levels for file in files))
    if any(file.is_lossy for file in files) or (levels and levels <= MASK_VALUES) or levels == IGNORE_VALUES:
        return False
    return 2 * sum(file.num_fragmented for file in files) <= sum(file.num_checked for file in files)


def _label_values(data: bytes, *, source: Path) -> np.ndarray:
    pixels = decode_pixels(data, source=source, for_labels=True).values
    if pixels.dtype.kind == "f":
        if not np.isfinite(pixels).all() or (pixels != np.rint(pixels)).any() or np.abs(pixels).max() >= 2**62:
            raise DataError(f"{source}: has values that are not whole numbers; labels must be")
        pixels = pixels.astype(np.int64)
    values = single_channel(pixels, source=source)
    if values.min() < 0:
        raise DataError(f"{source}: has negative labels (down to {values.min()})")
    if values.max() > np.iinfo(np.int32).max:  # too large for int32: renumbered in the same order
        levels, positions = np.unique(values, return_inverse=True)
        values = positions.reshape(values.shape) + (0 if levels[0] == 0 else 1)
    return values.astype(np.int32)
