"""Regions of interest for ImageJ and Fiji.

Reference: the layout of `ij.io.RoiDecoder` (ImageJ 1.53): a header of 64 bytes, big endian, then the coordinates.
"""

import io
import struct
import zipfile
from collections.abc import Sequence

import numpy as np

from cervseg_jax.annotations.polygons import Polygon

VERSION = 228
POLYGON, COMPOSITE = 0, 1
SUB_PIXEL = 128
"""Option by which ImageJ takes the coordinates from floats that follow the integers."""
MAX_INTEGER = 60_535
"""Largest coordinate that ImageJ reads from the header's 16 bits; it takes larger values for negative numbers."""
MAX_EXTENT = 32_767
MOVE_TO, LINE_TO, CLOSE = 0.0, 1.0, 4.0
_FIXED_TIME = (1980, 1, 1, 0, 0, 0)
"""Makes the files of equal regions equal."""


def roi_zip(polygons: Sequence[Sequence[Polygon]]) -> bytes:
    """Returns a ZIP archive with one region per nucleus, `0001.roi` and so on, in the order of the labels.

    Do not write the archive of an image without nuclei: ImageJ's `roiManager("Open", path)` hangs on an empty one.

    Args:
      polygons: polygons of each nucleus; those with holes or several parts become composite regions.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for index, parts in enumerate(polygons, start=1):
            archive.writestr(zipfile.ZipInfo(f"{index:04d}.roi", _FIXED_TIME), roi(parts))
    return buffer.getvalue()


def roi(parts: Sequence[Polygon]) -> bytes:
    """Returns one region; coordinates beyond `MAX_INTEGER` are stored as floats, which are exact up to 2^24."""
    rings = [ring for part in parts for ring in (part.outer, *part.holes)]
    left, top = np.min([ring.min(axis=0) for ring in rings], axis=0).astype(int).tolist()
    right, bottom = np.max([ring.max(axis=0) for ring in rings], axis=0).astype(int).tolist()
    box = (top, left, bottom, right)
    is_small = max(right - left, bottom - top) <= MAX_EXTENT and len(rings[0]) <= MAX_EXTENT
    if len(rings) == 1 and is_small:
        points = rings[0].astype(int) - (left, top)
        coordinates = points.T.astype(">i2").tobytes()
        is_wide = max(right, bottom) > MAX_INTEGER
        floats = rings[0].T.astype(">f4").tobytes() if is_wide else b""
        options = SUB_PIXEL if is_wide else 0
        return _header(POLYGON, box, num_points=len(points), num_floats=0, options=options) + coordinates + floats
    path: list[float] = []
    for ring in rings:
        for index, (x, y) in enumerate(ring.tolist()):
            path += [LINE_TO if index else MOVE_TO, x, y]
        path.append(CLOSE)
    header = _header(COMPOSITE, box, num_points=0, num_floats=len(path), options=0)
    return header + np.array(path, ">f4").tobytes()


def _header(kind: int, box: tuple[int, int, int, int], *, num_points: int, num_floats: int, options: int) -> bytes:
    unsigned = [side % 65_536 for side in box]  # ImageJ ignores the box where coordinates are floats
    head = struct.pack(">4shbb4HH", b"Iout", VERSION, kind, 0, *unsigned, num_points)
    return struct.pack(">18s18xi10xh", head, num_floats, options).ljust(64, b"\0")
