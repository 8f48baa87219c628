"""Large images that are read window by window."""

from pathlib import Path
from typing import Any

import numpy as np

from cervseg_jax.data.decode import MAX_FILE_BYTES, read_bytes
from cervseg_jax.data.headers import HeaderError, SlideHeaderError, read_header
from cervseg_jax.errors import ConfigError, DataError

SLIDE_SUFFIXES = frozenset({".svs", ".ndpi", ".scn", ".bif"})
TIFF_SUFFIXES = frozenset({".tiff", ".tif"})


def is_slide(path: Path) -> bool:
    """Whether a file is one to be read window by window: by its suffix, or a TIFF that is no plain small picture.

    Args:
      path: the file.

    Returns:
      True for scanners' formats, and for TIFF files with several pages (pyramids), BigTIFF and very large ones.

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
        pass  # whoever decodes it tells what is wrong
    return False


class Slide:
    """The finest level of a slide, as an array of uint8 [h, w, 3] that is read as needed."""

    def __init__(self, path: Path) -> None:
        """Opens a slide.

        Args:
          path: the file.

        Raises:
          ConfigError: if the extra `slides` is not installed.
          DataError: if the file is no slide.
        """
        try:
            from tiffslide import TiffSlide  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise ConfigError(
                f"{path}: slides and very large images need the extra: pip install 'cervseg-jax[slides]'"
            ) from None
        try:
            self._slide: Any = TiffSlide(path)
        except Exception as error:  # TiffFile's own errors have no common base
            raise DataError(f"{path}: is no slide that can be read: {error}") from None
        width, height = self._slide.dimensions
        self.shape = (height, width, 3)

    @property
    def mpp(self) -> float | None:
        """Micrometres per pixel, where the file tells."""
        value = self._slide.properties.get("tiffslide.mpp-x")
        return float(value) if value else None

    def close(self) -> None:
        """Closes the file."""
        self._slide.close()

    def __getitem__(self, window: tuple[slice, slice]) -> np.ndarray:
        """Returns a window, uint8 [h, w, 3]."""
        rows, columns = window
        top, bottom, _ = rows.indices(self.shape[0])
        left, right, _ = columns.indices(self.shape[1])
        region = self._slide.read_region((left, top), 0, (right - left, bottom - top), as_array=True)
        return np.asarray(region)[..., :3]
