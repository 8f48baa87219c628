"""Decoding of image, mask and label files, the same for training, evaluation and inference.

Images become RGB uint8, masks 0/1. The EXIF orientation is applied to both. Damaged files and unsupported
formats raise an error with the file's name; missing pixels are never filled in.
"""

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from cervseg_jax.choices import BitDepth, MaskRule
from cervseg_jax.data.headers import is_lossy
from cervseg_jax.data.raw import decode_pixels
from cervseg_jax.data.tiff_decode import Pixels
from cervseg_jax.errors import DataError
from cervseg_jax.storage.address import Address
from cervseg_jax.storage.cached import read_file

MAX_FILE_BYTES = 2**30
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"})
"""Suffixes of image files, in lower case."""

MAX_COLORED_SHARE = 0.05
"""A three-channel mask with fewer colored pixels than this is gray with colored edges."""


MAX_CLASS_LEVELS = 8
"""A lossless mask with at most this many levels may hold classes; smoothed edges have more."""
BIT_DEPTHS = (8, 10, 12, 14, 16)
FLAT_PX, MAX_GRAY_SHARE = 3, 0.1
"""Side of a flat area, and the share of the marked pixels above which gray ones hold classes or labels."""
IGNORED_LEVELS, IGNORED_SHARE = 16, 0.1
"""Levels below this, on at least this share of the pixels at the top of the range, are classes and not noise."""


class MaskReading(NamedTuple):
    """A decoded mask and the number of levels in its file."""

    mask: np.ndarray
    """uint8 [h, w], 1 for nucleus."""
    num_levels: int
    """Distinct values in the file; more than two come from lossy compression or interpolation."""


def read_bytes(path: Path) -> bytes:
    """Reads a regular file.

    Args:
      path: the file, or its address.

    Returns:
      Its content, at least one byte.

    Raises:
      DataError: if it is missing, empty, larger than 1 GiB, unreadable, or not a regular file (a pipe would block).
    """
    if isinstance(path, Address):
        return read_file(path, max_bytes=MAX_FILE_BYTES)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be opened: {error.strerror}") from None
    except ValueError as error:  # a zero byte in the name
        raise DataError(f"{path}: cannot be opened: {error}") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"{path}: is not a regular file")
        if status.st_size == 0:
            raise DataError(f"{path}: is empty (zero bytes)")
        if status.st_size > MAX_FILE_BYTES:
            raise DataError(f"{path}: is larger than {MAX_FILE_BYTES // 2**20} MiB")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    finally:
        os.close(descriptor)


class RawImage(NamedTuple):
    """A decoded image with the bit depth of the file."""

    pixels: Pixels
    bits: int | None
    """Smallest of `BIT_DEPTHS` that holds the values of a 16-bit file; None for 8-bit files."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        height, width = self.pixels.values.shape[:2]
        return height, width


def decode_raw(data: bytes, *, source: Path) -> RawImage:
    """Decodes an image without scaling it to 8 bits; see `decode_image` for arguments and errors."""
    pixels = decode_pixels(data, source=source)
    if pixels.values.dtype == np.uint8:
        return RawImage(pixels, None)
    colors = pixels.values if pixels.values.ndim == 2 else pixels.values[:, :, :3]
    return RawImage(pixels, bits_used(colors))


def bits_used(values: np.ndarray) -> int:
    """Returns the smallest of `BIT_DEPTHS` that holds 16-bit values.

    Example:
      >>> bits_used(np.array([[0, 4095]], np.uint16))
      12
    """
    highest = int(values.max(initial=0))
    return next(bits for bits in BIT_DEPTHS if highest < 2**bits)


def decode_image(
    data: bytes,
    *,
    source: Path,
    bit_depth: BitDepth = "auto",
    on_narrow: Callable[[int], None] = lambda bits: None,
) -> np.ndarray:
    """Decodes an image to RGB.

    Gray images get three equal channels, 16-bit values are rounded to 8 bits, CMYK and palettes are converted to RGB,
    and transparent pixels are blended with white, the color of an empty slide.

    Args:
      data: the whole file.
      source: path of the file, for messages.
      bit_depth: bits used in 16-bit files; 12 scales 0..4095 to 0..255.
      on_narrow: called with the number of bits if a 16-bit file uses fewer than 16.

    Returns:
      uint8 [h, w, 3].

    Raises:
      DataError: if the file is damaged, of an unsupported format, or has values beyond `bit_depth`.
    """
    raw = decode_raw(data, source=source)
    if raw.bits is not None and raw.bits < 16:
        on_narrow(raw.bits)
    return rgb_of(raw, source=source, bit_depth=bit_depth)


def rgb_of(raw: RawImage, *, source: Path, bit_depth: BitDepth = "auto") -> np.ndarray:
    """Scales a decoded image to RGB uint8 [h, w, 3]; see `decode_image` for arguments and errors."""
    values = raw.pixels.values
    bits = 16 if raw.bits is None else raw.bits
    if bit_depth != "auto" and raw.bits is not None:
        if raw.bits > bit_depth:
            highest = int(values.max() if values.ndim == 2 else values[:, :, :3].max())
            raise DataError(
                f"{source}: has values up to {highest}, which is more than {bit_depth} bits; set data.bit_depth"
            )
        bits = bit_depth
    colors = scale_to_8_bit(values if values.ndim == 2 else values[:, :, :3], bits)
    if colors.ndim == 2:
        return np.repeat(colors[:, :, None], 3, axis=2)
    if values.shape[2] == 3:
        return cv2.cvtColor(colors, cv2.COLOR_BGR2RGB)  # ten times as fast as a copy of the reversed view
    alpha = scale_to_8_bit(values[:, :, 3:], 16)
    return lay_on_white(colors[:, :, ::-1], alpha, is_premultiplied=raw.pixels.is_premultiplied)


def lay_on_white(rgb: np.ndarray, alpha: np.ndarray, *, is_premultiplied: bool) -> np.ndarray:
    """Blends transparent pixels with white; uint8 [h, w, 3] from colors [h, w, 3] and opacity [h, w, 1]."""
    wide = alpha.astype(np.uint16)
    if is_premultiplied:
        return np.minimum(rgb + (255 - wide), 255).astype(np.uint8)
    return ((rgb * wide + 255 * (255 - wide) + 127) // 255).astype(np.uint8)


def decode_mask(data: bytes, *, source: Path, rule: MaskRule = "half_range") -> MaskReading:
    """Decodes a mask to 0/1.

    If a mask has zero and one other level (0/1, 0/255, a color on black), the other level is the nucleus. Otherwise the
    rule decides which values are nucleus:

    - `half_range`: values from half of the type's range, which removes the noise of JPEG masks.
    - `any_nonzero`: all values but zero, as in the reference implementation. On the published JPEG masks, nuclei become
      19 % larger.
    - `value_1`: the value 1 only (the index 1 of a palette), for masks in which 255 marks pixels to be ignored. Those
      become background.

    Args:
      data: the whole file.
      source: path of the file, for messages.
      rule: see above.

    Returns:
      The mask and the number of levels in the file.

    Raises:
      DataError: if the file cannot be decoded, or its values do not distinguish nuclei from background.
    """
    if rule == "value_1":
        return _mask_of_ones(data, source=source)
    values = single_channel(decode_pixels(data, source=source).values, source=source)
    counts = np.bincount(values.ravel(), minlength=2)
    levels = np.flatnonzero(counts)
    top = int(levels[-1])
    if rule == "any_nonzero" or top == 0 or len(levels) == 1 or (len(levels) == 2 and levels[0] == 0):
        return MaskReading((values > 0).astype(np.uint8), len(levels))
    highest = np.iinfo(values.dtype).max
    half = (highest + 1) // 2
    if top < half:
        raise DataError(
            f"{source}: a mask with {len(levels)} levels up to {top} of {highest}: instance labels "
            "or class numbers? A mask has nucleus and background; data.mask_rule: any_nonzero takes all but zero"
        )
    if not is_lossy(data) and (_has_ignored_level(counts, levels, highest) or _has_areas(values, levels[1:-1])):
        raise DataError(
            f"{source}: a mask with areas of the levels {', '.join(map(str, levels[:MAX_CLASS_LEVELS]))}: classes, or "
            f"pixels to be ignored? mask_rule half_range would take {half} and more for nucleus, any_nonzero all but "
            "0; value_1 takes 1 only"
        )
    if _has_gray_areas(values, highest):
        raise DataError(
            f"{source}: a mask with areas of gray, between black and white: classes, or labels? mask_rule half_range "
            f"would take {half} and more for nucleus, any_nonzero all but 0"
        )
    return MaskReading((values >= half).astype(np.uint8), len(levels))


def _mask_of_ones(data: bytes, *, source: Path) -> MaskReading:
    values = single_channel(decode_pixels(data, source=source, for_labels=True).values, source=source)
    if values.any() and not (values == 1).any():
        raise DataError(f"{source}: a mask without the value 1 (its largest is {values.max()}); mask_rule is value_1")
    return MaskReading((values == 1).astype(np.uint8), len(np.unique(values)))


def _has_gray_areas(values: np.ndarray, highest: int) -> bool:
    """Whether much of a mask is flat and neither black nor white; soft edges are not flat."""
    window = np.ones((FLAT_PX, FLAT_PX), np.uint8)
    flat = (cv2.dilate(values, window).astype(np.int32) - cv2.erode(values, window)) <= highest // 16
    is_gray = (values > highest // 8) & (values < highest - highest // 8)
    return int((flat & is_gray).sum()) > MAX_GRAY_SHARE * int((values > highest // 8).sum())


def _has_areas(values: np.ndarray, levels: np.ndarray) -> bool:
    """Whether one of a few levels fills a square of 3x3 pixels somewhere, which smoothed edges do not."""
    square = np.ones((3, 3), np.uint8)
    return len(levels) + 2 <= MAX_CLASS_LEVELS and any(
        cv2.erode((values == level).astype(np.uint8), square).any() for level in levels
    )


def _has_ignored_level(counts: np.ndarray, levels: np.ndarray, highest: int) -> bool:
    """Whether a mask has class numbers from zero and, far from them, one more level at the top of the range."""
    if levels[-1] != highest or len(levels) < 3 or levels[-2] >= IGNORED_LEVELS:
        return False
    return bool(counts[1:IGNORED_LEVELS].sum() >= IGNORED_SHARE * counts[highest])


def read_image(
    path: Path, *, bit_depth: BitDepth = "auto", on_narrow: Callable[[int], None] = lambda bits: None
) -> np.ndarray:
    """Reads a file as RGB uint8 [h, w, 3]; see `decode_image` for arguments, and `read_bytes` for further errors."""
    return decode_image(read_bytes(path), source=path, bit_depth=bit_depth, on_narrow=on_narrow)


def read_mask(path: Path, *, rule: MaskRule = "half_range") -> MaskReading:
    """Reads a file as a 0/1 mask; see `read_bytes` and `decode_mask` for errors."""
    return decode_mask(read_bytes(path), source=path, rule=rule)


def scale_to_8_bit(pixels: np.ndarray, bits: int) -> np.ndarray:
    """Scales 0 .. 2**bits - 1 to 0 .. 255 with rounding; uint8 is returned unchanged."""
    if pixels.dtype == np.uint8:
        return pixels
    highest = 2**bits - 1
    return ((pixels.astype(np.uint32) * 255 + highest // 2) // highest).astype(np.uint8)


def single_channel(pixels: np.ndarray, *, source: Path) -> np.ndarray:
    """Reduces a mask file to one channel, or refuses a color mask of several classes."""
    if pixels.ndim == 2:
        return pixels
    if pixels.shape[2] == 4:
        if (pixels[:, :, 3] != np.iinfo(pixels.dtype).max).any():
            raise DataError(f"{source}: a mask with transparency; save it without an alpha channel")
        pixels = pixels[:, :, :3]
    first, second, third = cv2.split(pixels)
    highest = np.maximum(np.maximum(first, second), third)
    colored = highest - np.minimum(np.minimum(first, second), third) > np.iinfo(pixels.dtype).max // 16
    if not colored.any():  # gray, up to the noise of JPEG
        return second
    colors = np.unique(pixels.reshape(-1, 3), axis=0)
    if len(colors) == 2 and not colors[0].any():
        return highest
    if colored.mean() <= MAX_COLORED_SHARE:  # colored edges: a mask that was warped channel by channel
        return second
    raise DataError(f"{source}: a mask with {len(colors)} colors; needed are two levels, or one color on black")
