"""What an image file says of itself, read without decoding it.

OpenCV alone is no safe judge of a file: it fills the missing part of a cut JPEG with gray, allocates gigabytes for
a forged header and returns the first page of many without a word. These checks come before it.
"""

import struct
from typing import NamedTuple

MAX_PIXELS = 2**27
"""Largest image that is decoded whole: 134 megapixels, 400 MB as RGB."""


class Header(NamedTuple):
    """Facts from a file's header."""

    width: int
    height: int
    orientation: int = 1
    """EXIF orientation, 1 to 8."""
    has_signed_or_float_values: bool = False
    """Whether a TIFF says so; label maps may be of these types, images and masks may not."""


class HeaderError(ValueError):
    """The bytes are no acceptable image; the message says why, without the file's name."""


class SlideHeaderError(HeaderError):
    """The bytes are a TIFF that may be a slide: of several pages, of more than 4 GB, or too large to decode whole."""


def read_header(data: bytes) -> Header:
    """Checks an image file's structure.

    Accepted are PNG, JPEG, BMP, WebP and TIFF with one picture each, recognized by content and not by suffix.

    Args:
      data: the whole file.

    Returns:
      Size and orientation as stored.

    Raises:
      HeaderError: if the file is of another kind, cut short, too large, animated or has several pages.
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


def _parser(data: bytes):
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
    raise HeaderError("is not a PNG, JPEG, BMP, WebP or TIFF image")


def _png(data: bytes) -> Header:
    position, header, orientation = 8, None, 1
    while True:
        length, kind = struct.unpack_from(">I4s", data, position)
        body = data[position + 8 : position + 8 + length]
        if len(body) < length or position + 12 + length > len(data):
            raise HeaderError("is cut short")
        if kind == b"IHDR":
            header = Header(*struct.unpack_from(">II", body))
        elif kind == b"eXIf":
            orientation = _exif_orientation(body)
        elif kind == b"acTL":
            raise HeaderError("is an animation; one picture per file is needed")
        elif kind == b"IEND":
            break
        position += 12 + length
    if header is None:
        raise HeaderError("has no size (no IHDR chunk)")
    return header._replace(orientation=orientation)


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


_TIFF_WIDTH, _TIFF_HEIGHT, _TIFF_ORIENTATION, _TIFF_SAMPLE_FORMAT = 256, 257, 274, 339
_TIFF_OFFSETS_AND_LENGTHS = ((273, 279), (324, 325))


def _tiff(data: bytes) -> Header:
    tags, next_directory = _tiff_directory(data)
    if next_directory:
        raise SlideHeaderError("has several pages; one picture per file is needed")
    if tags.get(_TIFF_ORIENTATION, (1,))[0] != 1:
        raise HeaderError("is a TIFF with a rotated orientation tag; save it upright")
    for offsets, lengths in _TIFF_OFFSETS_AND_LENGTHS:
        parts = zip(tags.get(offsets, ()), tags.get(lengths, ()), strict=False)
        if any(offset + length > len(data) for offset, length in parts):
            raise HeaderError("is cut short")
    if _TIFF_WIDTH not in tags or _TIFF_HEIGHT not in tags:
        raise HeaderError("has no size")
    is_signed_or_float = tags.get(_TIFF_SAMPLE_FORMAT, (1,))[0] not in (1, 4)
    return Header(tags[_TIFF_WIDTH][0], tags[_TIFF_HEIGHT][0], has_signed_or_float_values=is_signed_or_float)


def _tiff_directory(data: bytes) -> tuple[dict[int, tuple[int, ...]], int]:
    """Reads the first directory of a TIFF structure: integer values by tag, and the next directory's offset."""
    order = "<" if data[:2] == b"II" else ">"
    (start,) = struct.unpack_from(f"{order}I", data, 4)
    (entries,) = struct.unpack_from(f"{order}H", data, start)
    codes = {1: "B", 3: "H", 4: "I"}
    tags = {}
    for index in range(entries):
        at = start + 2 + 12 * index
        tag, kind, count = struct.unpack_from(f"{order}HHI", data, at)
        if kind in codes and 0 < count <= len(data):
            code = codes[kind]
            inline = struct.calcsize(code) * count <= 4
            (where,) = (at + 8,) if inline else struct.unpack_from(f"{order}I", data, at + 8)
            tags[tag] = struct.unpack_from(f"{order}{count}{code}", data, where)
    (following,) = struct.unpack_from(f"{order}I", data, start + 2 + 12 * entries)
    return tags, following


def _exif_orientation(exif: bytes) -> int:
    """Returns the orientation in an EXIF block, which is a small TIFF; 1 where it has none or is damaged."""
    if exif[:2] not in (b"II", b"MM"):
        return 1
    try:
        tags, _ = _tiff_directory(exif)
    except struct.error:
        return 1
    return tags.get(_TIFF_ORIENTATION, (1,))[0]
