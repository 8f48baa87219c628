"""Structure of JPEG data.

A JPEG has no checksum. Where libjpeg meets a marker within a scan it fills the rest of the scan with gray and reports
success, so the markers are checked before.
"""

import re
import struct
from collections.abc import Iterator

_MARKER = re.compile(rb"\xff+([^\x00\xff])")
"""A marker in the data of a scan, where 0xFF 0x00 stands for the byte 0xFF."""
_SEQUENTIAL = (0xC0, 0xC1)
_RESTARTS = range(0xD0, 0xD8)
_HUFFMAN, _END, _SCAN, _QUANTIZATION, _RESTART_INTERVAL = 0xC4, 0xD9, 0xDA, 0xDB, 0xDD
_SEGMENTS = frozenset({0xC4, 0xCC, 0xDA, 0xDB, 0xDC, 0xDD, 0xFE, *range(0xE0, 0xF0)})
"""Markers that may stand between scans: tables, number of lines, comments and application data."""


def find_jpeg_damage(data: bytes) -> str:
    r"""Returns what is wrong with the markers of a JPEG, or "" if each is one that may stand where it does.

    Tables of a TIFF file's JPEG strips may be elsewhere. What follows the end of the image is not looked at.

    Args:
      data: bytes from the start-of-image marker on.

    Example:
      >>> find_jpeg_damage(b"\xff\xd8\xff\xd9")
      ''
      >>> find_jpeg_damage(b"\xff\xd8\xff\x21\xff\xd9")
      'a marker of an unknown kind at byte 2'
    """
    position, num_restarts, has_restarts, in_scan = 2, 0, False, False
    num_missing: int | None = None
    quantization, codes, needed = set[int](), set[int](), set[int]()
    while True:
        match = _MARKER.search(data, position) if in_scan else _MARKER.match(data, position)
        if match is None:
            return "no end-of-image marker" if in_scan else f"no marker at byte {position}, where one must be"
        kind, position = match[1][0], match.end()
        if kind == _END:
            return ""
        if kind in _RESTARTS and in_scan:
            if not has_restarts or kind != _RESTARTS[num_restarts % 8]:
                return f"a restart marker out of order at byte {match.start()}"
            num_restarts += 1
            continue
        is_frame = 0xC0 <= kind <= 0xCF and kind not in _SEGMENTS and not in_scan
        length = int.from_bytes(data[position : position + 2], "big")
        if (kind not in _SEGMENTS and not is_frame) or length < 2:
            return f"a marker of an unknown kind at byte {match.start()}"
        if kind == _RESTART_INTERVAL:
            has_restarts = data[position + 2 : position + 4] != b"\0\0"
        if kind == _QUANTIZATION:
            quantization.update(_quantization_tables(data[position + 2 : position + length]))
        if kind == _HUFFMAN:
            codes.update(_huffman_tables(data[position + 2 : position + length]))
        if is_frame:
            needed = set(data[position + 10 : position + 8 + 3 * data[position + 7] : 3])
            # Each component of a sequential image is in one scan.
            num_missing = data[position + 7] if kind in _SEQUENTIAL else None
        if kind == _SCAN:
            # Without one, libtiff takes the table of an earlier strip. Strips may have no tables at all.
            used = data[position + 4 : position + 3 + 2 * data[position + 2] : 2] if num_missing is not None else b""
            if (quantization and not needed <= quantization) or (codes and not codes.issuperset(_codes_of(used))):
                return f"a scan without its table at byte {match.start()}"
        if kind == _SCAN:
            num_components = data[position + 2]
            if length != 6 + 2 * num_components or (num_missing is not None and num_components > num_missing):
                return f"a scan too many, or without a header, at byte {match.start()}"
            num_missing = None if num_missing is None else num_missing - num_components
            in_scan, num_restarts = True, 0
        position += length


def _codes_of(selectors: bytes) -> Iterator[int]:
    """Yields the Huffman tables of the components of a scan, those of AC coefficients from 16 on."""
    for selector in selectors:
        yield selector // 16
        yield 16 + selector % 16


def _huffman_tables(segment: bytes) -> Iterator[int]:
    """Yields the numbers of the Huffman tables in a segment, those of AC coefficients from 16 on."""
    position = 0
    while position < len(segment):
        yield segment[position]
        position += 17 + sum(segment[position + 1 : position + 17])


def _quantization_tables(segment: bytes) -> Iterator[int]:
    """Yields the numbers of the quantization tables in a segment."""
    position = 0
    while position < len(segment):
        precision, number = divmod(segment[position], 16)
        yield number
        position += 1 + 64 * (1 + precision)


def jpeg_size(data: bytes) -> tuple[int, int]:
    """Returns width and height from the frame header of JPEG data without damage; zeros if there is none."""
    position = 2
    while (match := _MARKER.match(data, position)) and match[1][0] not in (_SCAN, _END):
        position = match.end()
        if 0xC0 <= match[1][0] <= 0xCF and match[1][0] not in _SEGMENTS:
            height, width = struct.unpack_from(">HH", data, position + 3)
            return width, height
        position += int.from_bytes(data[position : position + 2], "big")
    return 0, 0
