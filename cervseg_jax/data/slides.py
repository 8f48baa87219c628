"""Large images that are read window by window."""

import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from cervseg_jax.choices import BitDepth
from cervseg_jax.data.decode import MAX_FILE_BYTES, bits_used, lay_on_white, read_bytes, scale_to_8_bit
from cervseg_jax.data.headers import HeaderError, SlideHeaderError, read_header
from cervseg_jax.data.slide_dicom import DICOM_SUFFIX, DicomSource, dicom_files, dicom_slides
from cervseg_jax.data.slide_source import SlideError, SlideSource
from cervseg_jax.data.slide_tiff import SCANNER_SUFFIXES, TIFF_SUFFIXES, TiffSource
from cervseg_jax.data.slide_zarr import ZarrSource, is_zarr
from cervseg_jax.errors import CervsegError, ConfigError, DataError, first_line
from cervseg_jax.extras import install_command
from cervseg_jax.storage.retrying import StoreError

_SOURCES: Mapping[str, tuple[Callable[[Path], SlideSource], str]] = {
    "dicom": (DicomSource, "dicom"),
    "tiff": (TiffSource, "slides"),
    "zarr": (ZarrSource, "slides"),
}
"""Reader and extra of each format."""


def is_slide(path: Path) -> bool:
    """Whether an image must be read window by window: by its format, or as a TIFF that cannot be decoded whole.

    Args:
      path: a file or folder.

    Returns:
      True for the formats of slide scanners, DICOM, OME-Zarr, and for TIFF files that have several pages (pyramids),
      are BigTIFF, or are very large.

    Raises:
      DataError: if the file cannot be read.
    """
    suffix = path.suffix.lower()
    if suffix not in TIFF_SUFFIXES or path.is_dir():
        return _format_of(path) is not None
    if path.is_file() and path.stat().st_size > MAX_FILE_BYTES:
        return True
    try:
        read_header(read_bytes(path))
    except SlideHeaderError:
        return True
    except HeaderError:
        pass  # decoding reports it
    return False


def slides_in(folder: Path) -> list[Path]:
    """Returns the slides of a folder that are folders themselves or DICOM files, sorted.

    Args:
      folder: the folder; its folders count if they are slides, and are not searched otherwise.

    Returns:
      Folders and files as of `dicom_slides` and `is_zarr`. If the folder itself is one slide, it alone.
    """
    if is_zarr(folder):
        return [folder]
    own = dicom_slides(folder)
    if own == [folder]:
        return own
    folders = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    inside = [slide for path in folders for slide in ([path] if is_zarr(path) else dicom_slides(path))]
    return sorted([*own, *inside])


def _format_of(path: Path) -> str | None:
    """Returns the key of a slide's format in `_SOURCES`; None if it is none by name and, for folders, content."""
    suffix = path.suffix.lower()
    if path.is_dir():
        return "zarr" if is_zarr(path) else "dicom" if dicom_files(path) else None
    if suffix == DICOM_SUFFIX:
        return "dicom"
    return "tiff" if suffix in SCANNER_SUFFIXES else None


class Slide:
    """The finest level of a slide, as an array of uint8 [h, w, 3] that is read as needed.

    Gray images get three equal channels, and transparent pixels are blended with white. 16-bit values are scaled as in
    `decode_image`, all of a slide alike: by default, with the bits that the file states for its values, or else those
    that the coarsest level uses; brighter values are clipped. Of a stack of planes the middle one is read. Several
    threads may read windows; the file is read for one of them at a time.
    """

    def __init__(self, path: Path, *, bit_depth: BitDepth = "auto") -> None:
        """Opens a slide.

        Args:
          path: file, or folder of OME-Zarr or DICOM.
          bit_depth: bits used in 16-bit values.

        Raises:
          ConfigError: if the extra for the format is not installed.
          DataError: if it is not a slide, is truncated, or holds channels that are not colors.
        """
        self.path = path
        self._lock = threading.Lock()
        make_source, extra = _SOURCES[_format_of(path) or "tiff"]
        try:
            self._source = make_source(path)
        except CervsegError:
            raise
        except ImportError:
            raise ConfigError(f"{path}: slides and very large images need an extra: {install_command(extra)}") from None
        except SlideError as error:
            raise DataError(f"{path}: {error}") from None
        except Exception as error:  # the libraries' errors have no common base
            raise DataError(f"{path}: has damaged tags: {first_line(error)}") from None
        self._info = self._source.info
        self.shape = (self._info.height, self._info.width, 3)
        self.plane = self._info.plane
        """Which plane of a stack is read, such as "3 of 5"; "" if it is none."""
        try:
            self._bits = self._estimate_bits() if bit_depth == "auto" else bit_depth
        except Exception as error:
            self.close()
            raise DataError(f"{path}: is damaged and cannot be read: {first_line(error)}") from None

    def _estimate_bits(self) -> int:
        if self._info.dtype == np.uint8:
            return 16
        return self._info.bits or bits_used(self._source.overview())

    def close(self) -> None:
        """Closes the file."""
        self._source.close()

    def __getitem__(self, window: tuple[slice, slice]) -> np.ndarray:
        """Returns a window, uint8 [h, w, 3].

        Raises:
          DataError: if the file is damaged there.
        """
        rows, columns = window
        top, bottom, _ = rows.indices(self.shape[0])
        left, right, _ = columns.indices(self.shape[1])
        values = self._read(top, left, bottom - top, right - left)
        if values.dtype == np.uint16:
            values = scale_to_8_bit(np.minimum(values, 2**self._bits - 1), self._bits)
        if self._info.is_inverted:
            values = 255 - values
        if values.shape[2] == 1:
            return np.repeat(values, 3, axis=2)
        if values.shape[2] == 4:
            return lay_on_white(values[..., :3], values[..., 3:], is_premultiplied=self._info.is_premultiplied)
        return values

    def _read(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        try:
            with self._lock:
                values = self._source.read(top, left, height, width)
        except StoreError:
            raise  # what goes for one file at an address goes for all
        except Exception as error:  # the codecs' errors have no common base
            raise DataError(
                f"{self.path}: is damaged and cannot be read at row {top}, column {left}: {first_line(error)}"
            ) from None
        values = values if values.ndim == 3 else values[..., None]
        expected = (height, width, self._info.num_channels)
        if values.shape != expected or values.dtype != self._info.dtype:
            raise DataError(
                f"{self.path}: is damaged: row {top}, column {left} hold {values.dtype} {list(values.shape)}, not "
                f"{self._info.dtype} {list(expected)}"
            )
        return values
