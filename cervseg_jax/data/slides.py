"""Large images that are read window by window."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from cervseg_jax.choices import BitDepth
from cervseg_jax.data.decode import MAX_FILE_BYTES, bits_used, lay_on_white, read_bytes, scale_to_8_bit
from cervseg_jax.data.headers import HeaderError, SlideHeaderError, read_header
from cervseg_jax.data.tiff import COMPRESSION_NAMES, JPEG, ORIENTATION, PHOTOMETRIC
from cervseg_jax.data.tiff_decode import BLACK_IS_ZERO, RGB, WHITE_IS_ZERO, YCBCR
from cervseg_jax.errors import ConfigError, DataError
from cervseg_jax.extras import install_command

SLIDE_SUFFIXES = frozenset({".svs", ".ndpi", ".scn", ".bif"})
TIFF_SUFFIXES = frozenset({".tiff", ".tif"})
_YCBCR_COMPRESSIONS = frozenset({33003, 33004})
"""Aperio's JPEG 2000 of YCbCr colors, which TiffFile does not convert to RGB."""
OVERVIEW_PX = 2048
"""Maximum side of the region from which the bit depth of a slide is estimated."""


def is_slide(path: Path) -> bool:
    """Whether a file must be read window by window: by its suffix, or as a TIFF that cannot be decoded whole.

    Args:
      path: the file.

    Returns:
      True for the formats of slide scanners, and for TIFF files that have several pages (pyramids), are BigTIFF, or are
      very large.

    Raises:
      DataError: if the file cannot be read.
    """
    suffix = path.suffix.lower()
    if suffix not in TIFF_SUFFIXES:
        return suffix in SLIDE_SUFFIXES
    if path.is_file() and path.stat().st_size > MAX_FILE_BYTES:
        return True
    try:
        read_header(read_bytes(path))
    except SlideHeaderError:
        return True
    except HeaderError:
        pass  # decoding reports it
    return False


class Slide:
    """The finest level of a slide, as an array of uint8 [h, w, 3] that is read as needed.

    Gray images get three equal channels, and transparent pixels are blended with white. 16-bit values are scaled as in
    `decode_image`. By default, the bit depth is estimated from the coarsest level, and brighter values are clipped.
    """

    def __init__(self, path: Path, *, bit_depth: BitDepth = "auto") -> None:
        """Opens a slide.

        Args:
          path: the file.
          bit_depth: bits used in 16-bit values.

        Raises:
          ConfigError: if the extra `slides` is not installed.
          DataError: if the file is not a slide, is truncated, or holds a stack or channels that are not colors.
        """
        try:
            from tiffslide import TiffSlide  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise ConfigError(
                f"{path}: slides and very large images need an extra: {install_command('slides')}"
            ) from None
        self.path = path
        stack = _describe_pages(path) if path.suffix.lower() in TIFF_SUFFIXES else ""
        if stack:
            raise DataError(f"{path}: {stack}")
        try:
            self._slide: Any = TiffSlide(path)
            self._series: Any = self._slide.ts_tifffile.series[
                int(self._slide.properties.get("tiffslide.series-index") or 0)
            ]
        except Exception as error:  # TiffFile's own errors have no common base
            raise DataError(f"{path}: cannot be read as a slide: {error}") from None
        try:
            self._check()
            width, height = self._slide.dimensions
            self.shape = (height, width, 3)
            self._bits = self._estimate_bits() if bit_depth == "auto" else bit_depth
        except Exception as error:
            self._slide.close()
            if isinstance(error, DataError):
                raise
            raise DataError(f"{path}: has damaged tags: {error}") from None  # values of another type than expected

    def _check(self) -> None:
        """Checks that the pixels can be converted to RGB."""
        page, axes, shape = self._series.keyframe, self._series.axes, self._series.shape
        if axes not in ("YX", "YXS"):
            raise DataError(f"{self.path}: {_stack_text(axes, shape)}")
        num_channels = shape[2] if axes == "YXS" else 1
        if num_channels not in (1, 3, 4):
            raise DataError(f"{self.path}: has {num_channels} channels; save the one or three to be read")
        if self._series.dtype not in (np.uint8, np.uint16):
            raise DataError(f"{self.path}: has {self._series.dtype} pixels; 8-bit or 16-bit is needed")
        photometric, compression = int(page.photometric), int(page.compression)
        if photometric not in (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, YCBCR):
            raise DataError(f"{self.path}: has colors of another kind than gray and RGB; save RGB")
        if compression in _YCBCR_COMPRESSIONS or (photometric == YCBCR and compression != JPEG):
            name = f" compressed with {COMPRESSION_NAMES[compression]}" if compression in COMPRESSION_NAMES else ""
            raise DataError(f"{self.path}: has YCbCr colors{name}, which are not read; save RGB")
        orientation = page.tags.get(ORIENTATION)
        if orientation is not None and orientation.value != 1:
            raise DataError(f"{self.path}: is a TIFF with a rotated orientation tag; save it upright")
        # TiffFile takes white for zero where the tag is missing; decoding of whole files takes black.
        self._is_inverted = photometric == 0 and PHOTOMETRIC in page.tags
        self._is_premultiplied = num_channels == 4 and tuple(page.extrasamples) == (1,)
        size = self.path.stat().st_size
        # TiffFile shows tiles that the directory does not list as black.
        num_tiles, num_listed = math.prod(page.chunked), min(len(page.dataoffsets), len(page.databytecounts))
        if num_listed < num_tiles:
            raise DataError(f"{self.path}: is damaged (it lists {num_listed} of {num_tiles} tiles)")
        if any(
            offset + count > size
            for page in self._series.pages
            if page is not None
            for offset, count in zip(page.dataoffsets, page.databytecounts, strict=False)
        ):
            raise DataError(f"{self.path}: is cut short")

    def _estimate_bits(self) -> int:
        if self._series.dtype == np.uint8:
            return 16
        level = self._slide.level_count - 1
        width, height = self._slide.level_dimensions[level]
        size = (min(width, OVERVIEW_PX), min(height, OVERVIEW_PX))
        sample = self._read((width - size[0]) // 2, (height - size[1]) // 2, level, size)
        return bits_used(sample)

    @property
    def mpp(self) -> float | None:
        """Micrometers per pixel from the metadata; None if missing."""
        try:
            return float(self._slide.properties.get("tiffslide.mpp-x") or 0) or None
        except ValueError:
            return None

    def close(self) -> None:
        """Closes the file."""
        self._slide.close()

    def __getitem__(self, window: tuple[slice, slice]) -> np.ndarray:
        """Returns a window, uint8 [h, w, 3].

        Raises:
          DataError: if the file is damaged there.
        """
        rows, columns = window
        top, bottom, _ = rows.indices(self.shape[0])
        left, right, _ = columns.indices(self.shape[1])
        values = self._read(left, top, 0, (right - left, bottom - top))
        if values.dtype == np.uint16:
            values = scale_to_8_bit(np.minimum(values, 2**self._bits - 1), self._bits)
        if self._is_inverted:
            values = 255 - values
        if values.shape[2] == 1:
            return np.repeat(values, 3, axis=2)
        if values.shape[2] == 4:
            return lay_on_white(values[..., :3], values[..., 3:], is_premultiplied=self._is_premultiplied)
        return values

    def _read(self, left: int, top: int, level: int, size: tuple[int, int]) -> np.ndarray:
        scale = self._slide.level_downsamples[level]
        try:
            location = (round(left * scale), round(top * scale))
            values = np.asarray(self._slide.read_region(location, level, size, as_array=True))
        except Exception as error:  # the codecs' errors have no common base
            raise DataError(
                f"{self.path}: is damaged and cannot be read at row {top}, column {left}: {error}"
            ) from None
        return values if values.ndim == 3 else values[..., None]


def _describe_pages(path: Path) -> str:
    """Returns a message if a TIFF file holds a stack, or first a picture that is not its largest; "" otherwise."""
    from tifffile import TiffFile  # pyright: ignore[reportMissingImports]

    try:
        with TiffFile(path) as file:
            series = file.series[0]
            if series.axes not in ("YX", "YXS"):
                return _stack_text(series.axes, series.shape)
            height, width = max(
                (other.shape[:2] for other in file.series if other.axes in ("YX", "YXS")), key=math.prod
            )
            if height * width > math.prod(series.shape[:2]):
                return f"holds several pictures, and the first is not the largest ({width}x{height}); save that one"
            return ""
    except Exception:  # noqa: BLE001
        return ""


_AXIS_NAMES = {"C": "channels", "S": "color planes", "Z": "planes in depth", "T": "points in time"}


def _stack_text(axes: str, shape: tuple[int, ...]) -> str:
    counts = [
        f"{length} {_AXIS_NAMES.get(axis, 'pages')}"
        for axis, length in zip(axes, shape, strict=True)
        if axis not in "YX" and not (axis == "S" and axes.endswith("S"))
    ]
    return f"holds {' x '.join(counts)}; save one gray or RGB picture per file"
