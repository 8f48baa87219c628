"""Pixel size from the metadata of image files."""

import mmap
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cervseg_jax.data import tiff
from cervseg_jax.data.ome import MICROMETERS, read_ome_xml
from cervseg_jax.data.slide_dicom import DICOM_SUFFIX, dicom_files, dicom_pixel_size
from cervseg_jax.data.slide_zarr import is_slide_folder, is_zarr, zarr_pixel_size
from cervseg_jax.data.tiff import Directory
from cervseg_jax.errors import DataError
from cervseg_jax.storage.address import Address

PLAUSIBLE_UM = (0.01, 20.0)
"""Range of a microscope's pixel sizes; others come from screens and printers (72 dpi are 353 micrometers)."""

HEAD_BYTES = 2**17
"""What is read of a file at an address, at its beginning and on both sides of the first directory."""

_INCH, _CENTIMETER = 2, 3


def pixel_size_um(path: Path) -> float | None:
    """Returns the side length of a pixel in micrometers from the metadata of a TIFF file or slide.

    Sources in a TIFF file in order of priority: OME-XML, Aperio's MPP, ImageJ's unit, and TIFF's resolution tags.

    Args:
      path: an image file, or a folder of OME-Zarr or DICOM.

    Returns:
      The size; None if it is missing, implausible, or not the same in both directions.
    """
    try:
        if path.suffix.lower() == DICOM_SUFFIX or is_slide_folder(path):
            size = _common(*_sizes_of_slide(path))
        else:
            size = _size_in_tiff(path)
    except (OSError, ValueError, LookupError, TypeError, struct.error, DataError):
        return None  # opening reports damage
    return size if size is not None and PLAUSIBLE_UM[0] <= size <= PLAUSIBLE_UM[1] else None


def _sizes_of_slide(path: Path) -> tuple[float, float]:
    if is_zarr(path):
        return zarr_pixel_size(path)
    return dicom_pixel_size(path) if path.is_file() or dicom_files(path) else (0.0, 0.0)


def _size_in_tiff(path: Path) -> float | None:
    with _mapped(path) as data:
        if data[:4] not in tiff.SIGNATURES:
            return None
        directory = tiff.read_directory(data)
    text = directory.texts.get(tiff.DESCRIPTION, b"").decode("utf-8", "replace")
    return _size_in_ome(text) or _size_in_aperio(text) or _size_in_tags(directory, text)


@contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap]:
    """Yields a file's content; of a file at an address its beginning and the surroundings of the first directory."""
    if not isinstance(path, Address):
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield data
        return
    size = path.entry(refresh=path.entry().size is None).size or 0
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as data:  # takes memory where it is written
        data[: min(size, HEAD_BYTES)] = path.read_range(0, min(size, HEAD_BYTES))
        start = tiff.first_directory(data)
        if data[:4] in tiff.SIGNATURES and not 0 < start <= HEAD_BYTES // 2:
            near = range(max(0, start - HEAD_BYTES), min(size, start + HEAD_BYTES))
            data[near.start : near.stop] = path.read_range(near.start, near.stop)
        yield data


def _size_in_ome(text: str) -> float | None:
    pixels = read_ome_xml(text)
    if pixels is None:
        return None
    sides = [
        _number(pixels.attributes.get(f"PhysicalSize{axis}"))
        * MICROMETERS.get(pixels.attributes.get(f"PhysicalSize{axis}Unit", "um"), 0)
        for axis in "XY"
    ]
    return _common(*sides)


def _size_in_aperio(text: str) -> float | None:
    found = re.search(r"\bMPP\s*=\s*([0-9.eE+-]+)", text)
    return _number(found[1]) or None if found else None


def _size_in_tags(directory: Directory, text: str) -> float | None:
    unit = {_INCH: 25400.0, _CENTIMETER: 1e4}.get(directory.first(tiff.RESOLUTION_UNIT, _INCH), 0.0)
    if text.startswith("ImageJ="):  # its unit replaces the tag's
        found = re.search(r"^unit=(.*)$", text, re.MULTILINE)
        named = found[1].strip().replace("\\u00B5", "\u00b5") if found else ""
        unit = MICROMETERS.get(named, unit)
    sides = []
    for tag in (tiff.X_RESOLUTION, tiff.Y_RESOLUTION):
        numerator, denominator = (*directory.values.get(tag, ()), 0, 0)[:2]
        sides.append(unit * denominator / numerator if numerator else 0.0)
    return _common(*sides)


def _common(x: float, y: float) -> float | None:
    """Returns the common size of both directions; None if they differ by more than 1 % or are not positive."""
    return x if x > 0 and abs(x - y) <= 0.01 * x else None


def _number(text: str | None) -> float:
    try:
        return float(text or 0)
    except ValueError:
        return 0.0
