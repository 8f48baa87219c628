"""Validation of a dataset: reads every file once, to report unusable ones before training starts."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import cv2
import numpy as np

from cervseg_jax.choices import BitDepth, MaskRule
from cervseg_jax.data.decode import decode_mask, decode_raw, read_bytes, rgb_of
from cervseg_jax.data.manifest import read_manifest
from cervseg_jax.data.pairs import Pair
from cervseg_jax.data.samples import read_instances, require_same_size
from cervseg_jax.data.scale import nucleus_diameters
from cervseg_jax.errors import DataError, first_few
from cervseg_jax.files import sha256_of
from cervseg_jax.runtime.threads import map_files, num_threads
from cervseg_jax.schema import DataConfig

MOSTLY_COVERED = 0.85
"""Share of the image above which a mask seems inverted whatever its brightness."""
MIN_CONTRAST = 10.0
"""Gray levels by which marked pixels must be brighter than the others for a mask to seem inverted."""
MIN_SOLIDITY = 0.85


class PairStats(NamedTuple):
    """Properties of a pair of decoded files."""

    pair: Pair
    height: int
    width: int
    mask_levels: int
    foreground: float
    """Share of nucleus pixels."""
    image_sha256: str
    """Hash of the image file's bytes."""
    bits: int | None
    """Bits that a 16-bit image uses; None for 8-bit files."""
    is_inverted: bool
    """See `looks_inverted`."""
    saturation: float | None = None
    """Mean saturation of the image, 0..255; None unless nuclei were measured, as the next."""
    diameters_px: Sequence[float] | None = None
    """Diameters of the annotated nuclei; see `nucleus_diameters`."""


class CheckedPairs(NamedTuple):
    """Usable pairs, and messages about the others."""

    stats: list[PairStats]
    problems: list[str]

    @property
    def pairs(self) -> list[Pair]:
        """The usable pairs."""
        return [item.pair for item in self.stats]

    @property
    def num_noisy_masks(self) -> int:
        """Masks with more than two levels."""
        return sum(item.mask_levels > 2 for item in self.stats)

    @property
    def num_inverted_masks(self) -> int:
        """Masks that seem to mark the background."""
        return sum(item.is_inverted for item in self.stats)


def join_splits(train: Sequence[PairStats], valid: Sequence[PairStats]) -> list[PairStats]:
    """Joins the pairs of two splits; the stem of one that occurs in both gets the suffix `_valid` in the second.

    The same holds for its group where that is the stem, as in datasets without a manifest.
    """
    taken, joined = {item.pair.stem for item in train}, list(train)
    for item in valid:
        pair = item.pair
        if pair.stem in taken:
            stem = f"{pair.stem}_valid"
            pair = pair._replace(stem=stem, group=stem if pair.group == pair.stem else pair.group)
        joined.append(item._replace(pair=pair))
    return joined


class ReadFiles(NamedTuple):
    """What was learned from the files of a dataset, for a later step that would read them again."""

    data: DataConfig
    """How they were read."""
    checked: Mapping[str, CheckedPairs]
    """By split, with measured nuclei."""

    def of_split(self, split: str, pairs: Sequence[Pair], data: DataConfig) -> CheckedPairs | None:
        """Returns what is known of the files; None unless the very same files would be read in the same way."""
        known = self.checked.get(split)
        is_same = known is not None and known.pairs == list(pairs) and _reading(self.data) == _reading(data)
        return known if is_same else None


def _reading(data: DataConfig) -> tuple[MaskRule, BitDepth]:
    return data.mask_rule, data.bit_depth


def looks_inverted(image: np.ndarray, mask: np.ndarray) -> bool:
    """Whether a mask seems to mark the background instead of the nuclei.

    It does if it covers more than half of the image and its pixels are brighter than the others, or if it covers nearly
    the whole image. In dark-field and fluorescence images nuclei are the brighter part: there, it does if it
    covers the image's border and what it leaves out are compact areas, as nuclei are and gaps between them are not.

    Args:
      image: uint8 [h, w, 3].
      mask: uint8 [h, w], 1 for nucleus.
    """
    covered = float(mask.mean())
    if covered <= 0.5 or covered == 1.0:
        return False
    marked, others = (sum(cv2.mean(image, mask=area)[:3]) / 3 for area in (mask, 1 - mask))
    if covered > MOSTLY_COVERED or marked > others + MIN_CONTRAST:
        return True
    border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
    return marked < others - MIN_CONTRAST and border.mean() > MOSTLY_COVERED and _solidity(1 - mask) > MIN_SOLIDITY


def _solidity(mask: np.ndarray) -> float:
    """Returns the area of a mask's pieces as a share of that of their convex hulls."""
    pieces, _ = cv2.findContours(np.pad(mask, 1), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    areas = [(cv2.contourArea(piece), cv2.contourArea(cv2.convexHull(piece))) for piece in pieces]
    own, hulls = np.sum(areas, axis=0) if areas else (0.0, 0.0)
    return float(own / hulls) if hulls else 0.0


def common_bit_depth(bits: Iterable[int | None], setting: BitDepth) -> BitDepth:
    """Returns the bit depth for a set of images.

    Args:
      bits: `PairStats.bits` of each image.
      setting: `data.bit_depth`.

    Returns:
      The setting; for "auto" the largest of `bits`, or "auto" if all files have 8 bits.
    """
    known = [value for value in bits if value is not None]
    return cast(BitDepth, max(known)) if setting == "auto" and known else setting


def bit_depth_warning(bits: Iterable[int | None], setting: BitDepth, *, option: str) -> str:
    """Returns a warning for 16-bit images whose values use fewer bits; "" if there are none.

    Args:
      bits: `PairStats.bits` of each image.
      setting: depth used for all images.
      option: start of the option that changes the depth, such as "--set data.bit_depth=".
    """
    narrow = [value for value in bits if value is not None and value < 16]
    if not narrow:
        return ""
    most = max(narrow)
    scaled = f"0..{2**setting - 1} becomes 0..255" if setting != "auto" else "each is scaled by its own values"
    advice = f"; {option}{most} takes them as {most} bits" if setting == 16 else f"; {option}16 takes the full range"
    return f"{len(narrow)} 16-bit images have values up to {most} bits only ({2**most - 1}): {scaled}{advice}"


def check_pairs(
    pairs: Sequence[Pair],
    data: DataConfig,
    *,
    measure: bool = False,
    on_progress: Callable[[], None] = lambda: None,
) -> CheckedPairs:
    """Reads every file once and reports those that cannot be used.

    Args:
      pairs: pairs to read.
      data: the config's data section.
      measure: also measure nuclei and saturation, for which instance labels are read as well.
      on_progress: called after each pair, for a progress bar.

    Returns:
      Statistics of the usable pairs in the same order, and one message for each of the others.

    Raises:
      DataError: if files cannot be used and `data.on_bad_file` is "fail", or if no pair is usable.
    """
    checked = read_stats(pairs, data, measure=measure, on_progress=on_progress)
    require_usable(checked, data)
    return checked


def read_stats(
    pairs: Sequence[Pair], data: DataConfig, *, measure: bool = False, on_progress: Callable[[], None] = lambda: None
) -> CheckedPairs:
    """Reads every file once, as `check_pairs` does, without an error for those that cannot be used."""
    problems: list[str] = []
    stats = map_files(
        lambda pair: _read_stats(pair, data, measure=measure),
        pairs,
        on_progress=on_progress,
        problems=problems,
        threads=num_threads(data),
    )
    return CheckedPairs(stats, problems)


def require_usable(checked: CheckedPairs, data: DataConfig) -> None:
    """Raises the error of `check_pairs`, if files cannot be used."""
    problems, num_usable = checked.problems, len(checked.stats)
    if problems and (data.on_bad_file == "fail" or not num_usable):
        raise DataError(_bad_files_message(problems, num_usable + len(problems)))


def stats_of_manifest(root: Path, found: Mapping[str, Sequence[Pair]]) -> dict[str, CheckedPairs] | None:
    """Returns what `check_pairs` would, from the dataset's manifest and without reading images.

    Args:
      root: the dataset.
      found: pairs by split.

    Returns:
      Statistics by split; None without a manifest as `prepare` writes it, or if it lacks one of the images.

    Raises:
      DataError: if the manifest cannot be read.
    """
    path = root / "manifest.csv"
    if not path.is_file():
        return None
    rows = {(row["split"], row["stem"]): row for row in read_manifest(path)}
    try:
        return {
            split: CheckedPairs([_stated(pair, rows[split, pair.stem]) for pair in pairs], [])
            for split, pairs in found.items()
        }
    except (KeyError, ValueError):
        return None  # another dataset's, or another program's


def _stated(pair: Pair, row: Mapping[str, str]) -> PairStats:
    """Returns what a manifest says; `prepare` writes images of 8 bits and masks of two levels."""
    return PairStats(
        pair,
        int(row["height"]),
        int(row["width"]),
        mask_levels=2,
        foreground=float(row["foreground"]),
        image_sha256=row["image_sha256"],
        bits=None,
        is_inverted=False,
    )


def _read_stats(pair: Pair, data: DataConfig, *, measure: bool) -> PairStats:
    encoded = read_bytes(pair.image_path)
    raw = decode_raw(encoded, source=pair.image_path)
    image = rgb_of(raw, source=pair.image_path, bit_depth=data.bit_depth)
    mask, num_levels = decode_mask(read_bytes(pair.mask_path), source=pair.mask_path, rule=data.mask_rule)
    require_same_size(pair, image.shape, mask.shape)
    height, width = mask.shape
    saturation, diameters_px = None, None
    if measure:
        instances = None if pair.instances_path is None else read_instances(pair, mask.shape)
        diameters_px = nucleus_diameters(mask, instances).tolist()
        saturation = float(cv2.cvtColor(image, cv2.COLOR_RGB2HSV)[..., 1].mean())
    return PairStats(
        pair,
        height,
        width,
        num_levels,
        foreground=float(mask.mean()),
        image_sha256=sha256_of(encoded),
        bits=raw.bits,
        is_inverted=looks_inverted(image, mask),
        saturation=saturation,
        diameters_px=diameters_px,
    )


def _bad_files_message(problems: Sequence[str], num_pairs: int) -> str:
    advice = "repair or remove them, or leave them out with --set data.on_bad_file=skip"
    return f"{len(problems)} of {num_pairs} pairs cannot be used; {advice}:\n  " + first_few(problems, "\n  ")
