"""Decoding of files to pixels with the bit depth of the file."""

import io
import zlib
from pathlib import Path

import cv2
import numpy as np

from cervseg_jax.data.headers import Header, HeaderError, read_header
from cervseg_jax.data.tiff_decode import Pixels, TiffError, decode_tiff
from cervseg_jax.errors import DataError, first_line


def decode_pixels(data: bytes, *, source: Path, for_labels: bool = False) -> Pixels:
    """Decodes a file with its own bit depth, and applies the EXIF orientation.

    With `for_labels`, palette images become their indices, and types besides uint8 and uint16 are accepted.
    """
    try:
        header = read_header(data)
        if header.tags is not None:
            pixels = decode_tiff(data, header.tags, for_labels=for_labels)
        elif for_labels and header.has_palette:
            pixels = Pixels(_palette_indices(data))
        else:
            pixels = Pixels(_imdecode(data))
            _check_webp(data)
    except (HeaderError, TiffError) as error:
        raise DataError(f"{source}: {error}") from None
    except (cv2.error, MemoryError) as error:
        raise DataError(f"{source}: cannot be decoded: {first_line(error)}") from None
    _check_pixels(pixels.values, header, source=source, for_labels=for_labels)
    return pixels._replace(values=_upright(pixels.values, header.orientation))


def _imdecode(data: bytes) -> np.ndarray:
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
    if pixels is None:
        raise HeaderError("is damaged and cannot be decoded")
    return pixels


def _check_webp(data: bytes) -> None:
    """Refuses damaged WebP data, for which OpenCV reports success; Pillow, with the same library, does not."""
    if data[8:12] != b"WEBP":
        return
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as picture:
            picture.load()
    except Exception as error:  # its errors have no common base
        raise HeaderError(f"is damaged ({error})") from None


def _palette_indices(data: bytes) -> np.ndarray:
    """Decodes a PNG's palette indices, uint8 [h, w], by declaring the image to be gray."""
    start = 16  # of the first chunk's body, IHDR: width, height, bit depth, color type
    bits = data[start + 8]
    header = data[start : start + 9] + b"\0" + data[start + 10 : start + 13]
    checksum = zlib.crc32(b"IHDR" + header).to_bytes(4, "big")
    chunks, position = [], start + 17
    while position < len(data):
        end = position + 12 + int.from_bytes(data[position : position + 4], "big")
        if data[position + 4 : position + 8] in (b"IDAT", b"IEND"):
            chunks.append(data[position:end])
        position = end
    pixels = _imdecode(data[:start] + header + checksum + b"".join(chunks))
    return pixels // (255 // (2**bits - 1))  # libpng scales fewer than 8 bits to the full range


def _check_pixels(pixels: np.ndarray, header: Header, *, source: Path, for_labels: bool) -> None:
    if pixels.dtype not in (np.uint8, np.uint16) and not for_labels:
        raise DataError(f"{source}: has {pixels.dtype} pixels; 8-bit or 16-bit is needed")
    if pixels.shape[:2] != (header.height, header.width):
        raise DataError(
            f"{source}: its header says {header.width}x{header.height}, "
            f"its pixels are {pixels.shape[1]}x{pixels.shape[0]}"
        )
    if pixels.ndim == 3 and pixels.shape[2] not in (3, 4):
        raise DataError(f"{source}: has {pixels.shape[2]} channels; 1, 3 or 4 are understood")


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Applies an EXIF orientation (EXIF 2.3, tag 0x0112)."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)
