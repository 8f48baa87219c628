"""Checks of image files that need no decoding: kind, size, completeness, orientation.

OpenCV fills the missing part of a truncated JPEG with gray, allocates gigabytes for a forged header and returns the
first of several pages without an error. These checks run first.
"""

import struct
import zlib
from collections.abc import Callable
from typing import NamedTuple

from cervseg_jax.data import tiff
from cervseg_jax.data.jpeg import find_jpeg_damage

MAX_PIXELS = 2**27
"""Maximum number of pixels of an image that is decoded whole: 134 megapixels, 400 MB as RGB."""


class Header(NamedTuple):
    """Metadata from a file's header."""

    width: int
    height: int
    orientation: int = 1
    """EXIF orientation, 1 to 8."""
    tags: tiff.Directory | None = None
    """Tags of a TIFF file; None for other formats."""
    has_palette: bool = False
    """Whether it is a PNG whose values are palette indices."""


class HeaderError(ValueError):
    """Raised for files that are not accepted as images; the message lacks the file name."""


class SlideHeaderError(HeaderError):
    """Raised for TIFF files that may be slides: several pages, BigTIFF, or too large to decode whole."""


def read_header(data: bytes) -> Header:
    """Checks an image file's structure.

    Accepts PNG, JPEG, BMP, WebP and TIFF with a single image, recognized by content and not by suffix.

    Args:
      data: the whole file.

    Returns:
      Size and orientation as stored in the file.

    Raises:
      HeaderError: if the file has another format, is truncated, too large or animated, or has several pages.
    """
    try:
        header = _parser(data)(data)
    except (struct.error, IndexError):
        raise HeaderError("cut short in its header") from None
    if header.width < 1 or header.height < 1:
        raise HeaderError(f"has the impossible size {header.width}x{header.height}")
    if header.width * header.height > MAX_PIXELS:
        kind = SlideHeaderError if data[:2] in (b"II", b"MM") else HeaderError
        raise kind(f"has {header.width}x{header.height} pixels, more than the {MAX_PIXELS} that are read whole")
    return header if 1 <= header.orientation <= 8 else header._replace(orientation=1)


def _parser(data: bytes) -> Callable[[bytes], Header]:
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return _png
    if data.startswith(b"\xff\xd8\xff"):
        return _jpeg
    if data.startswith(b"BM"):
        return _bmp
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _webp
    if data[:4] in (b"II*\0", b"MM\0*"):
        return _tiff
    if data[:4] in (b"II+\0", b"MM\0+"):
        raise SlideHeaderError("is a BigTIFF, which is read as a slide alone")
    kind = other_kind(data)
    raise HeaderError(f"is {kind + ', ' if kind else ''}not a PNG, JPEG, BMP, WebP or TIFF image")


def is_lossy(data: bytes) -> bool:
    """Whether a file is a JPEG or a lossy WebP."""
    is_webp = data[:4] == b"RIFF" and data[8:12] == b"WEBP"
    return data.startswith(b"\xff\xd8") or (is_webp and b"VP8 " in data[12:4096])


_KINDS_AT_START = {
    b"GIF8": "a GIF",
    b"\0\0\0\x0cjP  ": "a JPEG 2000 image",
    b"\xff\x4f\xff\x51": "a JPEG 2000 image",
    b"\xff\x0a": "a JPEG XL image",
    b"\0\0\0\x0cJXL ": "a JPEG XL image",
    b"II\xbc": "a JPEG XR image",
    b"8BPS": "a Photoshop file",
    b"gimp xcf": "a GIMP file",
    b"%PDF": "a PDF",
    b"\x93NUMPY": "a NumPy array",
    b"\x89HDF": "an HDF5 file",
    b"PK\x03\x04": "a ZIP archive",
    b"\x1f\x8b": "a gzip archive",
    b"\x76\x2f\x31\x01": "an OpenEXR image",
    b"\xda\xce\xbe\x0a": "a Nikon ND2 file",
    b"ZISRAWFILE": "a Zeiss CZI file",
    b"\x70\0\0\0": "a Leica LIF file",
    b"\0\x05\x16\x07": "a macOS metadata file",
    b"version https://git-lfs": "a pointer of Git LFS without the image",
    b"<svg": "an SVG drawing",
    b"<?xml": "an XML file",
    b"<!DOCTYPE": "an HTML page",
    b"<html": "an HTML page",
    b"<!doctype": "an HTML page",
}
_KINDS_OF_CONTAINERS = {
    b"avif": "an AVIF image",
    b"avis": "an AVIF image",
    b"heic": "a HEIF image",
    b"heix": "a HEIF image",
    b"mif1": "a HEIF image",
    b"msf1": "a HEIF image",
}


def other_kind(data: bytes) -> str:
    """Returns the name of an unsupported format with its article, such as "a PDF"; "" if it is unknown."""
    if data[128:132] == b"DICM":
        return "a DICOM file"
    if data[4:8] == b"ftyp":
        return _KINDS_OF_CONTAINERS.get(data[8:12], "a video")
    if len(data) > 2 and data[:1] == b"P" and data[1:2] in b"1234567" and data[2:3].isspace():
        return "a Netpbm image"
    return next((kind for start, kind in _KINDS_AT_START.items() if data.startswith(start)), "")


_PNG_PALETTE = 3


def _png(data: bytes) -> Header:
    position, header, orientation, has_palette = 8, None, 1, False
    while True:
        length, kind = struct.unpack_from(">I4s", data, position)
        body = data[position + 8 : position + 8 + length]
        if len(body) < length or position + 12 + length > len(data):
            raise HeaderError("is cut short")
        if kind in (b"IHDR", b"PLTE", b"tRNS"):  # libpng checks the pixels' checksums
            (checksum,) = struct.unpack_from(">I", data, position + 8 + length)
            if zlib.crc32(body, zlib.crc32(kind)) != checksum:
                raise HeaderError(f"is damaged (checksum of its {kind.decode()} chunk)")
        if kind == b"IHDR":
            header = Header(*struct.unpack_from(">II", body))
            has_palette = body[9] == _PNG_PALETTE
        elif kind == b"eXIf":
            orientation = _exif_orientation(body)
        elif kind == b"acTL":
            raise HeaderError("is an animation; one picture per file is needed")
        elif kind == b"IEND":
            break
        position += 12 + length
    if header is None:
        raise HeaderError("has no size (no IHDR chunk)")
    return header._replace(orientation=orientation, has_palette=has_palette)


_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def _jpeg(data: bytes) -> Header:
    if data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda"):
        raise HeaderError("is cut short (no end-of-image marker)")
    position, size, orientation = 2, None, 1
    while True:
        while data[position] == 0xFF and data[position + 1] == 0xFF:
            position += 1
        mark, kind, length = struct.unpack_from(">BBH", data, position)
        if mark != 0xFF or length < 2:
            raise HeaderError("is damaged (no marker where one must be)")
        body = data[position + 4 : position + 2 + length]
        if kind in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", body, 1)
            size = (width, height)
        elif kind == 0xE1 and body.startswith(b"Exif\0\0"):
            orientation = _exif_orientation(body[6:])
        elif kind == 0xDA:
            break
        position += 2 + length
    if size is None:
        raise HeaderError("has no size (no frame header)")
    damage = find_jpeg_damage(data)
    if damage:
        raise HeaderError(f"is damaged ({damage})")
    return Header(*size, orientation=orientation)


def _bmp(data: bytes) -> Header:
    (offset,) = struct.unpack_from("<I", data, 10)
    width, height, _, bits, compression = struct.unpack_from("<iiHHI", data, 18)
    height = abs(height)
    if compression in (0, 3) and offset + (width * bits + 31) // 32 * 4 * height > len(data):
        raise HeaderError("is cut short")
    return Header(width, height)


def _webp(data: bytes) -> Header:
    (riff_size,) = struct.unpack_from("<I", data, 4)
    if riff_size + 8 > len(data):
        raise HeaderError("is cut short")
    position, size, orientation = 12, None, 1
    while position + 8 <= min(len(data), riff_size + 8):
        kind, length = struct.unpack_from("<4sI", data, position)
        body = data[position + 8 : position + 8 + length]
        if kind == b"VP8X":
            size = tuple(1 + int.from_bytes(body[i : i + 3], "little") for i in (4, 7))
        elif kind == b"VP8 " and size is None:
            size = tuple(value & 0x3FFF for value in struct.unpack_from("<HH", body, 6))
        elif kind == b"VP8L" and size is None:
            (bits,) = struct.unpack_from("<I", body, 1)
            size = (1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF))
        elif kind == b"ANIM":
            raise HeaderError("is an animation; one picture per file is needed")
        elif kind == b"EXIF":
            orientation = _exif_orientation(body.removeprefix(b"Exif\0\0"))
        position += 8 + length + length % 2
    if size is None:
        raise HeaderError("has no size (no picture chunk)")
    return Header(size[0], size[1], orientation=orientation)


def _tiff(data: bytes) -> Header:
    directory = tiff.read_directory(data)
    if directory.following:
        raise SlideHeaderError("has several pages; one picture per file is needed")
    if directory.first(tiff.ORIENTATION, 1) != 1:
        raise HeaderError("is a TIFF with a rotated orientation tag; save it upright")
    if tiff.WIDTH not in directory.values or tiff.HEIGHT not in directory.values:
        raise HeaderError("has no size")
    return Header(directory.first(tiff.WIDTH, 0), directory.first(tiff.HEIGHT, 0), tags=directory)


def _exif_orientation(exif: bytes) -> int:
    """Returns the orientation in an EXIF block, which is a small TIFF; 1 if it has none or is damaged."""
    if exif[:2] not in (b"II", b"MM"):
        return 1
    try:
        return tiff.read_directory(exif).first(tiff.ORIENTATION, 1)
    except struct.error:
        return 1
