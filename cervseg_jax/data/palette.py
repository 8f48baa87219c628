"""Palette indices of PNG files: OpenCV returns the colors, but in label maps and class masks the index counts."""

import struct
import zlib

import numpy as np

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOR_TYPE_AT, _PALETTE, _GRAY = 9, 3, 0


def as_gray(data: bytes) -> tuple[bytes, int] | None:
    """Rewrites a palette PNG as a gray one whose values are the indices.

    Args:
      data: a complete PNG file.

    Returns:
      The gray PNG and its bit depth, or None if `data` is not a PNG with a palette. Decoders scale depths below 8 to
      the full range; `unscaled` restores the indices.
    """
    if not data.startswith(SIGNATURE):
        return None
    position, pieces, depth = len(SIGNATURE), [SIGNATURE], 0
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        body = data[position + 8 : position + 8 + length]
        position += 12 + length
        if kind == b"IHDR":
            if len(body) <= _COLOR_TYPE_AT or body[_COLOR_TYPE_AT] != _PALETTE or body[8] not in (1, 2, 4, 8):
                return None
            depth = body[8]
            body = body[:_COLOR_TYPE_AT] + bytes([_GRAY]) + body[_COLOR_TYPE_AT + 1 :]
        if kind in (b"IHDR", b"IDAT", b"IEND"):
            pieces += [struct.pack(">I4s", len(body), kind), body, struct.pack(">I", zlib.crc32(kind + body))]
    return (b"".join(pieces), depth) if depth else None


def unscaled(gray: np.ndarray, depth: int) -> np.ndarray:
    """Returns the indices of decoded gray values, uint8 [h, w].

    Example:
      >>> unscaled(np.array([[0, 17, 255]], np.uint8), 4).tolist()
      [[0, 1, 15]]
    """
    return gray // (255 // (2**depth - 1))
