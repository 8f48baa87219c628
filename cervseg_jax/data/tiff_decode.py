"""Decoding of TIFF files; unsupported features raise an error with a one-line reason."""

import io
import struct
from typing import NamedTuple

import cv2
import numpy as np

from cervseg_jax.data import tiff
from cervseg_jax.data.tiff import Directory
from cervseg_jax.errors import first_line
from cervseg_jax.extras import install_command

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR = 0, 1, 2, 3, 5, 6
_COLORS = {WHITE_IS_ZERO: 1, BLACK_IS_ZERO: 1, RGB: 3, PALETTE: 1, CMYK: 4, YCBCR: 3}
_COLOR_NAMES = {4: "a transparency mask", 8: "CIELab colors", 9: "ICCLab colors", 10: "ITULab colors"}
_UNSPECIFIED, _PREMULTIPLIED, _STRAIGHT = 0, 1, 2
_UNSIGNED, _SIGNED, _FLOAT, _VOID = 1, 2, 3, 4
_PREDICTOR, _COLORMAP, _SUBSAMPLING = 317, 320, 530


class TiffError(ValueError):
    """Raised for damaged and unsupported files; the message lacks the file name."""


class Pixels(NamedTuple):
    """Decoded values with the bit depth of the file."""

    values: np.ndarray
    """Gray [h, w] or BGR(A) [h, w, 3|4]."""
    is_premultiplied: bool = False
    """Whether the colors are already multiplied by the opacity."""


def decode_tiff(data: bytes, directory: Directory, *, for_labels: bool = False) -> Pixels:
    """Decodes the only image of a TIFF file.

    Args:
      data: the whole file.
      directory: its tags.
      for_labels: return the indices of a palette instead of its colors, and accept integers of any width and
        floating-point values.

    Raises:
      TiffError: if it is damaged or not supported.
    """
    compression = directory.first(tiff.COMPRESSION, tiff.NO_COMPRESSION)
    _check_samples(directory, for_labels=for_labels)
    if compression not in tiff.OPENCV_COMPRESSIONS:
        return _decode_with_tifffile(data, compression, directory, for_labels=for_labels)
    damage = tiff.find_damage(data, directory)
    if damage:
        raise TiffError(damage)
    photometric = directory.first(tiff.PHOTOMETRIC, BLACK_IS_ZERO)
    samples = directory.first(tiff.SAMPLES, 1)
    if samples > 1 and directory.first(tiff.PLANAR, 1) == 2:
        return _in_bgr_order(_decode_planes(data, directory, samples), directory)
    if photometric == PALETTE and for_labels:
        data = _with_tags(data, directory, {tiff.PHOTOMETRIC: (BLACK_IS_ZERO,)}, without={_COLORMAP})
    if samples == 2:
        return _decode_gray_and_alpha(data, directory)
    values = _imdecode(data, directory)
    if photometric == WHITE_IS_ZERO and values.ndim == 2 and directory.first(tiff.BITS, 1) > 8:
        values = np.iinfo(values.dtype).max - values  # OpenCV inverts only up to 8 bits
    extra = directory.first(tiff.EXTRA_SAMPLES, _UNSPECIFIED)
    if values.ndim == 3 and values.shape[2] == 4 and photometric == RGB:
        # For 8 bits, libtiff multiplies colors by a straight alpha channel.
        is_premultiplied = extra == _PREMULTIPLIED or values.dtype == np.uint8
        return Pixels(_without_unspecified(values, extra), is_premultiplied)
    return Pixels(values)


def _check_samples(directory: Directory, *, for_labels: bool) -> None:
    """Raises an error for files that OpenCV would decode to wrong pixels."""
    formats = {_UNSIGNED, _VOID, _SIGNED, _FLOAT} if for_labels else {_UNSIGNED, _VOID}
    if not formats.issuperset(directory.values.get(tiff.SAMPLE_FORMAT, (_UNSIGNED,))):
        raise TiffError("is a TIFF of floating-point or signed values; 8-bit or 16-bit is needed")
    bits = directory.values.get(tiff.BITS, (1,))
    if len(set(bits)) > 1:
        raise TiffError(f"is a TIFF with channels of different depths ({', '.join(map(str, bits))} bits)")
    photometric = directory.first(tiff.PHOTOMETRIC, BLACK_IS_ZERO)
    if photometric not in _COLORS:
        raise TiffError(f"is a TIFF of {_COLOR_NAMES.get(photometric, f'colors of the kind {photometric}')}; save RGB")
    compression = directory.first(tiff.COMPRESSION, tiff.NO_COMPRESSION)
    subsampling = directory.values.get(_SUBSAMPLING, (2, 2))
    if photometric == YCBCR and compression != tiff.JPEG and subsampling != (1, 1):
        raise TiffError("is a TIFF of YCbCr colors without JPEG compression; save RGB")
    samples, num_colors = directory.first(tiff.SAMPLES, 1), _COLORS[photometric]
    if len(bits) not in (1, samples):
        raise TiffError(f"is damaged ({samples} channels, and depths of {len(bits)})")
    if samples < num_colors:
        raise TiffError(f"is damaged ({samples} channels, where its colors need {num_colors})")
    if samples - num_colors > 1 or (samples > num_colors and photometric in (PALETTE, CMYK, YCBCR)):
        raise TiffError(
            f"has {samples} channels, not gray or RGB with or without transparency; save the one or three to be read"
        )


def _imdecode(data: bytes, directory: Directory) -> np.ndarray:
    try:
        values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
    except (cv2.error, MemoryError) as error:
        raise TiffError(f"cannot be decoded: {first_line(error)}") from None
    if values is None:
        bits = directory.first(tiff.BITS, 1)
        raise TiffError("is damaged and cannot be decoded" if bits in (8, 16) else f"has {bits} bits per channel")
    return values


def _decode_planes(data: bytes, directory: Directory, samples: int) -> np.ndarray:
    """Decodes planar channels, each as a gray image; returns [h, w, samples]."""
    tiled = tiff.TILE_OFFSETS in directory.values
    offsets, sizes = (tiff.TILE_OFFSETS, tiff.TILE_SIZES) if tiled else (tiff.STRIP_OFFSETS, tiff.STRIP_SIZES)
    num_blocks = len(directory.values[offsets]) // samples
    planes = []
    for first in range(0, num_blocks * samples, num_blocks):
        changed = {tag: directory.values[tag][first : first + num_blocks] for tag in (offsets, sizes)}
        changed |= {
            tiff.SAMPLES: (1,),
            tiff.PHOTOMETRIC: (BLACK_IS_ZERO,),
            tiff.BITS: directory.values.get(tiff.BITS, (1,))[:1],
            tiff.PLANAR: (1,),
        }
        removed = {tiff.EXTRA_SAMPLES, tiff.SAMPLE_FORMAT, tiff.MAX_VALUE, 280}
        planes.append(_imdecode(_with_tags(data, directory, changed, without=removed), directory))
    return np.stack(planes, axis=2)


def _decode_gray_and_alpha(data: bytes, directory: Directory) -> Pixels:
    """Decodes gray and alpha of 8 bits each as one 16-bit channel, and separates them."""
    if directory.first(tiff.BITS, 1) != 8 or directory.first(_PREDICTOR, 1) != 1:
        raise TiffError("has 2 channels; save the one to be read")
    changed = {tiff.SAMPLES: (1,), tiff.BITS: (16,), tiff.PHOTOMETRIC: (BLACK_IS_ZERO,)}
    pairs = _imdecode(_with_tags(data, directory, changed, without={tiff.EXTRA_SAMPLES, tiff.SAMPLE_FORMAT}), directory)
    low, high = (pairs & 255).astype(np.uint8), (pairs >> 8).astype(np.uint8)
    gray, alpha = (low, high) if directory.order == "<" else (high, low)
    return _in_bgr_order(np.dstack([gray, alpha]), directory)


def _in_bgr_order(values: np.ndarray, directory: Directory) -> Pixels:
    """Converts channels in the order of the file, [h, w, samples], to gray or BGR(A)."""
    photometric = directory.first(tiff.PHOTOMETRIC, BLACK_IS_ZERO)
    extra = directory.first(tiff.EXTRA_SAMPLES, _UNSPECIFIED)
    if photometric not in (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB):
        raise TiffError("is a TIFF of other colors than gray and RGB; save RGB")
    num_colors = _COLORS[photometric]
    colors, alpha = values[:, :, :num_colors], values[:, :, num_colors:]
    if photometric == WHITE_IS_ZERO:
        colors = np.iinfo(values.dtype).max - colors
    if alpha.shape[2] == 0:
        return Pixels(np.ascontiguousarray(colors[:, :, 0] if num_colors == 1 else colors[:, :, ::-1]))
    if num_colors == 1 and extra == _UNSPECIFIED:
        raise TiffError("has 2 channels; save the one to be read")
    colors = np.repeat(colors, 3, axis=2) if num_colors == 1 else colors[:, :, ::-1]
    together = np.ascontiguousarray(np.concatenate([colors, alpha], axis=2))
    return Pixels(_without_unspecified(together, extra), extra == _PREMULTIPLIED)


def _without_unspecified(values: np.ndarray, extra: int) -> np.ndarray:
    """Checks that a fourth channel is opacity: declared as such, or opaque everywhere."""
    if extra == _UNSPECIFIED and (values[:, :, 3] != np.iinfo(values.dtype).max).any():
        raise TiffError("has 4 channels, of which the last is not said to be transparency; save the three to be read")
    return values


def _with_tags(data: bytes, directory: Directory, changed: dict[int, tuple[int, ...]], *, without: set[int]) -> bytes:
    """Appends a directory with changed tags to a file, and makes the header refer to it."""
    order = directory.order
    (start,) = struct.unpack_from(f"{order}I", data, 4)
    (count,) = struct.unpack_from(f"{order}H", data, start)
    entries = {}
    for at in range(start + 2, start + 2 + 12 * count, 12):
        (tag,) = struct.unpack_from(f"{order}H", data, at)
        entries[tag] = data[at : at + 12]
    tail = b""
    base = len(data) + len(data) % 2
    for tag, values in changed.items():
        packed = struct.pack(f"{order}{len(values)}I", *values)
        if len(values) > 1:
            packed, tail = struct.pack(f"{order}I", base + len(tail)), tail + packed
        entries[tag] = struct.pack(f"{order}HHI", tag, 4, len(values)) + packed
    kept = [entries[tag] for tag in sorted(entries.keys() - without | changed.keys())]
    listed = struct.pack(f"{order}H", len(kept)) + b"".join(kept) + bytes(4)
    header = data[:4] + struct.pack(f"{order}I", base + len(tail))
    return header + data[8:] + bytes(base - len(data)) + tail + listed


def _decode_with_tifffile(data: bytes, compression: int, directory: Directory, *, for_labels: bool) -> Pixels:
    """Decodes compressions that OpenCV lacks; requires the extra `formats`."""
    name = f"{tiff.COMPRESSION_NAMES.get(compression, 'an unknown method')} ({compression})"
    advice = "save it with LZW, deflate or no compression"
    photometric = directory.first(tiff.PHOTOMETRIC, BLACK_IS_ZERO)
    kinds = (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, *((PALETTE,) if for_labels else ()))
    if photometric not in kinds or compression not in _TIFFFILE_COMPRESSIONS:
        raise TiffError(f"is compressed with {name}, which is not read; {advice}")
    try:
        import imagecodecs  # noqa: F401  # pyright: ignore
        from tifffile import TiffFile  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise TiffError(
            f"is compressed with {name}, which needs the extra: {install_command('formats')}; or {advice}"
        ) from None
    try:
        with TiffFile(io.BytesIO(data)) as file:
            values = np.asarray(file.pages[0].asarray())  # pyright: ignore[reportAttributeAccessIssue]
    except Exception as error:  # the codecs' errors have no common base
        raise TiffError(f"is damaged or not read: compressed with {name}: {first_line(error)}") from None
    if values.dtype == bool:
        values = values.astype(np.uint8)
    samples = directory.first(tiff.SAMPLES, 1)
    if samples > 1 and directory.first(tiff.PLANAR, 1) == 2 and values.ndim == 3:
        values = np.moveaxis(values, 0, 2)
    expected = (directory.first(tiff.HEIGHT, 0), directory.first(tiff.WIDTH, 0), samples)
    if values.ndim == 2:
        values = values[:, :, None]
    if values.shape != expected:
        raise TiffError(f"is damaged: compressed with {name}; its pixels are not of the size that its header says")
    if photometric == PALETTE:
        return Pixels(np.ascontiguousarray(values[:, :, 0]))
    return _in_bgr_order(values, directory)


_TIFFFILE_COMPRESSIONS = frozenset({33005, 34712, 34887, 34925, 34926, 34927, 34933, 34934, 22610, 50000, 50001, 50002})
"""Compressions that tifffile decodes; without YCbCr variants, whose colors it does not convert, and those of DNG."""
