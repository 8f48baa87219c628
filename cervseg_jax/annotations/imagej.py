"""Regions of interest for ImageJ and Fiji.

Reference: the layout of `ij.io.RoiDecoder` (ImageJ 1.54): a header of 64 bytes, big endian, then the coordinates.
"""

import io
import struct
import zipfile
from collections.abc import Sequence

import numpy as np

from cervseg_jax.annotations.polygons import Polygon

VERSION = 228
POLYGON, COMPOSITE = 0, 1
MOVE_TO, LINE_TO, CLOSE = 0.0, 1.0, 4.0
_EARLY = (1980, 1, 1, 0, 0, 0)
"""Equal regions give equal files."""


def roi_zip(polygons: Sequence[Sequence[Polygon]]) -> bytes:
    """Returns a ZIP with one region per nucleus, `0001.roi` and so on, in the order of the labels.

    Args:
      polygons: of each nucleus; those with holes or several parts become composite regions.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, parts in enumerate(polygons, start=1):
            archive.writestr(zipfile.ZipInfo(f"{number:04d}.roi", _EARLY), roi(parts))
    return buffer.getvalue()


def roi(parts: Sequence[Polygon]) -> bytes:
    """Returns one region."""
    rings = [ring for part in parts for ring in (part.outer, *part.holes)]
    left, top = np.min([ring.min(axis=0) for ring in rings], axis=0).astype(int).tolist()
    right, bottom = np.max([ring.max(axis=0) for ring in rings], axis=0).astype(int).tolist()
    if len(rings) == 1:
        points = rings[0].astype(int) - (left, top)
        header = _header(POLYGON, (top, left, bottom, right), num_points=len(points), num_floats=0)
        return header + points[:, 0].astype(">i2").tobytes() + points[:, 1].astype(">i2").tobytes()
    path: list[float] = []
    for ring in rings:
        for number, (x, y) in enumerate(ring.tolist()):
            path += [LINE_TO if number else MOVE_TO, x, y]
        path.append(CLOSE)
    header = _header(COMPOSITE, (top, left, bottom, right), num_points=0, num_floats=len(path))
    return header + np.array(path, ">f4").tobytes()


def _header(kind: int, box: tuple[int, int, int, int], *, num_points: int, num_floats: int) -> bytes:
    head = struct.pack(">4shbb4hh", b"Iout", VERSION, kind, 0, *box, num_points)
    return (head + bytes(18) + struct.pack(">i", num_floats)).ljust(64, b"\0")
