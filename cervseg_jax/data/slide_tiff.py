"""Slides in TIFF files: those of scanners, BigTIFF, OME-TIFF and pyramids.

TiffSlide reads single pictures, and knows where the formats of scanners keep them. Planes and separate channels of
OME-TIFF and ImageJ files are read through TiffFile.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np

from cervseg_jax.data.ome import Channel, are_colors, describe_channels, read_ome_xml
from cervseg_jax.data.slide_source import SlideError, SlideInfo, middle, middle_plane, stated_bits
from cervseg_jax.data.tiff import COMPRESSION_NAMES, JPEG, ORIENTATION, PHOTOMETRIC
from cervseg_jax.data.tiff_decode import BLACK_IS_ZERO, RGB, WHITE_IS_ZERO, YCBCR

SCANNER_SUFFIXES = frozenset({".svs", ".ndpi", ".scn", ".bif"})
TIFF_SUFFIXES = frozenset({".tiff", ".tif"})
_YCBCR_COMPRESSIONS = frozenset({33003, 33004})
"""Aperio's JPEG 2000 of YCbCr colors, which TiffFile does not convert to RGB."""
_AXIS_NAMES = {"C": "channels", "S": "color planes", "Z": "planes in depth", "T": "points in time"}


class TiffSource:
    """A slide in a TIFF file, see `SlideSource`."""

    def __init__(self, path: Path) -> None:
        """Opens a file.

        Raises:
          ImportError: if the extra `slides` is not installed.
          SlideError: if it is no slide, is cut short, or holds pages that are not read.
          Exception: whatever TiffFile raises for damaged tags.
        """
        from tiffslide import TiffSlide  # pyright: ignore[reportMissingImports]

        try:
            self._slide: Any = TiffSlide(path)
            file: Any = self._slide.ts_tifffile
            is_scanner = path.suffix.lower() in SCANNER_SUFFIXES
            first = int(self._slide.properties.get("tiffslide.series-index") or 0) if is_scanner else 0
            self._series: Any = file.series[first]
        except Exception as error:  # TiffFile's own errors have no common base
            raise SlideError(f"cannot be read as a slide: {error}") from None
        try:
            if not is_scanner:
                _require_largest(file, self._series)
            ome = read_ome_xml(file.ome_metadata or "")
            bits = None if ome is None else ome.significant_bits
            self._planes: Any = None
            self._chosen, plane = _choose_pages(self._series, [] if ome is None else ome.channels)
            self.info = self._describe(plane, bits)
            _require_complete(self._series, path.stat().st_size)
        except Exception:
            self.close()
            raise

    def read(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Returns a window, see `SlideSource`."""
        return self._read(0, top, left, height, width)

    def overview(self) -> np.ndarray:
        """Returns the middle of the coarsest level, see `SlideSource`."""
        level = len(self._series.levels) - 1 if self._chosen else self._slide.level_count - 1
        if self._chosen:
            shape = dict(zip(self._series.axes, self._series.levels[level].shape, strict=True))
            height, width = shape["Y"], shape["X"]
        else:
            width, height = self._slide.level_dimensions[level]
        return self._read(level, *middle(height, width))

    def close(self) -> None:
        """Closes the file."""
        self._slide.close()

    def _describe(self, plane: str, bits: int | None) -> SlideInfo:
        """Checks that the pixels can be converted to RGB, and returns what they mean."""
        page, series = self._series.keyframe, self._series
        shape = dict(zip(series.axes, series.shape, strict=True))
        num_channels = shape.get("S", 3 if "C" in shape else 1)
        if num_channels not in (1, 3, 4):
            raise SlideError(f"has {num_channels} channels; save the one or three to be read")
        if series.dtype not in (np.uint8, np.uint16):
            raise SlideError(f"has {series.dtype} pixels; 8-bit or 16-bit is needed")
        photometric, compression = int(page.photometric), int(page.compression)
        if photometric not in (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, YCBCR):
            raise SlideError("has colors of another kind than gray and RGB; save RGB")
        if compression in _YCBCR_COMPRESSIONS or (photometric == YCBCR and compression != JPEG):
            name = f" compressed with {COMPRESSION_NAMES[compression]}" if compression in COMPRESSION_NAMES else ""
            raise SlideError(f"has YCbCr colors{name}, which are not read; save RGB")
        orientation = page.tags.get(ORIENTATION)
        if orientation is not None and orientation.value != 1:
            raise SlideError("is a TIFF with a rotated orientation tag; save it upright")
        width, height = (shape["X"], shape["Y"]) if self._chosen else self._slide.dimensions
        return SlideInfo(
            height,
            width,
            num_channels,
            np.dtype(series.dtype),
            stated_bits(np.dtype(series.dtype), bits),
            plane,
            # TiffFile takes white for zero where the tag is missing; decoding of whole files takes black.
            is_inverted=photometric == WHITE_IS_ZERO and PHOTOMETRIC in page.tags,
            is_premultiplied=num_channels == 4 and tuple(page.extrasamples) == (1,),
        )

    def _read(self, level: int, top: int, left: int, height: int, width: int) -> np.ndarray:
        if not self._chosen:
            scale = self._slide.level_downsamples[level]
            location = (round(left * scale), round(top * scale))
            return np.asarray(self._slide.read_region(location, level, (width, height), as_array=True))
        if self._planes is None or level:
            import zarr  # pyright: ignore[reportMissingImports]

            array: Any = zarr.open_array(self._series.aszarr(level=level), mode="r")
            self._planes = self._planes if level else array
        else:
            array = self._planes
        window = self._chosen | {"Y": slice(top, top + height), "X": slice(left, left + width)}
        values = np.asarray(array[tuple(window[axis] for axis in self._series.axes)])
        kept = [axis for axis in self._series.axes if isinstance(window[axis], slice)]
        return values.transpose([kept.index(axis) for axis in ("Y", "X", *(set(kept) - {"Y", "X"}))])


def _choose_pages(series: Any, channels: list[Channel]) -> tuple[dict[str, Any], str]:
    """Returns what is read of each axis besides height and width, and the plane for `SlideInfo`.

    Nothing is returned for a single picture, gray or with interleaved colors.

    Raises:
      SlideError: if the file holds more than one picture, or channels that are no colors.
    """
    axes, shape = series.axes, dict(zip(series.axes, series.shape, strict=True))
    if axes in ("YX", "YXS"):
        return {}, ""
    counts = [f"{shape[axis]} {_AXIS_NAMES.get(axis, 'pages')}" for axis in axes if axis not in "YXSC"]
    if "C" in shape:
        named = channels if len(channels) == shape["C"] else [Channel()] * shape["C"]
        if "S" in shape or series.dtype != np.uint8 or not are_colors(named):
            counts.append(describe_channels(named))
    if not set(axes) <= set("ZCSYX") or len(set(axes)) < len(axes) or len(counts) > ("Z" in shape):
        raise SlideError(f"holds {' x '.join(counts)}; save one gray or RGB picture per file")
    if "S" in shape and int(series.keyframe.photometric) not in (RGB, YCBCR):
        raise SlideError(f"holds {shape['S']} color planes; save one gray or RGB picture per file")
    index, plane = middle_plane(shape.get("Z", 1))
    chosen: dict[str, Any] = {"Z": index, "C": slice(None), "S": slice(None)}
    return {axis: chosen[axis] for axis in shape if axis in chosen}, plane


def _require_largest(file: Any, series: Any) -> None:
    """Refuses files whose first picture is not their largest."""
    sizes = [(one.sizes.get("height", 0), one.sizes.get("width", 0)) for one in file.series]
    height, width = max(sizes, key=math.prod)
    if height * width > series.sizes.get("height", 0) * series.sizes.get("width", 0):
        raise SlideError(f"holds several pictures, and the first is not the largest ({width}x{height}); save that one")


def _require_complete(series: Any, num_bytes: int) -> None:
    """Refuses files that are cut short, and those that do not list all of their tiles."""
    page = series.keyframe
    # TiffFile shows tiles that the directory does not list as black.
    num_tiles, num_listed = math.prod(page.chunked), min(len(page.dataoffsets), len(page.databytecounts))
    if num_listed < num_tiles:
        raise SlideError(f"is damaged (it lists {num_listed} of {num_tiles} tiles)")
    own = [one for one in series.pages if one is not None and one.parent is series.keyframe.parent]
    if any(
        offset + count > num_bytes
        for page in own
        for offset, count in zip(page.dataoffsets, page.databytecounts, strict=False)
    ):
        raise SlideError("is cut short")
