"""Whole slides in DICOM files: several files of one series are the levels of one slide (DICOM PS3.3, A.32.8)."""

import functools
import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from cervseg_jax.data.slide_source import SlideError, SlideInfo, middle, middle_plane, stated_bits
from cervseg_jax.errors import ConfigError, DataError
from cervseg_jax.extras import install_command

DICOM_SUFFIX = ".dcm"
_WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
"""UID of VL Whole Slide Microscopy Image Storage."""
_TAGS = [
    "SOPClassUID",
    "ImageType",
    "SeriesInstanceUID",
    "TotalPixelMatrixColumns",
    "TotalPixelMatrixRows",
    "SharedFunctionalGroupsSequence",
    "BitsStored",
    "SamplesPerPixel",
    "PhotometricInterpretation",
]


def is_dicom_readable() -> bool:
    """Whether the extra `dicom` is installed."""
    return all(importlib.util.find_spec(name) is not None for name in ("pydicom", "wsidicom"))


def dicom_files(folder: Path) -> list[Path]:
    """Returns the DICOM files of a folder by suffix, sorted."""
    paths = (path for path in folder.iterdir() if path.suffix.lower() == DICOM_SUFFIX)
    return sorted(path for path in paths if not path.name.startswith(".") and path.is_file())


def dicom_slides(folder: Path) -> list[Path]:
    """Returns the slides in a folder of DICOM files.

    Returns:
      The folder itself if all of its DICOM files are of one series, else the file of the finest level of each series;
      nothing if there are none, or the extra `dicom` is not installed. Files that are no whole slides are left out.
    """
    if not is_dicom_readable():
        return []
    by_series: dict[str, list[tuple[int, Path]]] = {}
    for path in dicom_files(folder):
        header = _read_header(path)
        if header is not None and header.get("SOPClassUID") == _WHOLE_SLIDE and _is_level(header):
            by_series.setdefault(str(header.get("SeriesInstanceUID")), []).append((_num_pixels(header), path))
    if len(by_series) == 1:
        return [folder]
    return sorted(max(files, key=lambda file: (file[0], file[1].name))[1] for files in by_series.values())


def dicom_pixel_size(path: Path) -> tuple[float, float]:
    """Returns height and width of a pixel in micrometers of the finest level; zeros if it is not stated.

    Args:
      path: a file, or a folder with the files of one slide.
    """
    headers = [header for file in _files_of(path) if (header := _read_header(file)) is not None and _is_level(header)]
    finest = max(headers, key=_num_pixels, default=None)
    groups = None if finest is None else finest.get("SharedFunctionalGroupsSequence")
    measures = groups[0].get("PixelMeasuresSequence") if groups else None
    spacing = measures[0].get("PixelSpacing") if measures else None
    return (0.0, 0.0) if spacing is None else (float(spacing[0]) * 1000, float(spacing[1]) * 1000)


class DicomSource:
    """A whole slide in DICOM files, see `SlideSource`."""

    def __init__(self, path: Path) -> None:
        """Opens a slide.

        Args:
          path: one of its files, or the folder of them.

        Raises:
          ImportError: if the extra `dicom` is not installed.
          SlideError: if it holds no slide, or one that is not read.
          Exception: whatever wsidicom raises for damaged files.
        """
        from wsidicom import WsiDicom  # pyright: ignore[reportMissingImports]

        _require_readable(_files_of(path))
        self._slide: Any = WsiDicom.open(_files_of(path))
        try:
            if len(self._slide.pyramids) != 1:
                raise SlideError(f"holds {len(self._slide.pyramids)} pyramids of levels; save one picture")
            levels = self._slide.pyramids[0]
            finest: Any = levels.base_level
            optical_paths = sorted(finest.optical_paths)
            if len(optical_paths) > 1:
                raise SlideError(
                    f"holds {len(optical_paths)} channels (optical paths {', '.join(optical_paths)}); save one gray or "
                    "RGB picture"
                )
            planes = sorted(finest.focal_planes)
            index, plane = middle_plane(len(planes))
            self._focus: float = planes[index]
            self._coarsest: Any = max(levels, key=lambda level: level.level)
            dataset: Any = finest.default_instance.dataset
            num_channels = int(dataset.samples_per_pixel)
            bits = int(dataset.bits)
            dtype = np.dtype(np.uint8 if bits <= 8 else np.uint16)
            size = finest.size
            self.info = SlideInfo(size.height, size.width, num_channels, dtype, stated_bits(dtype, bits), plane)
        except Exception:
            self.close()
            raise

    def read(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Returns a window, see `SlideSource`."""
        return self._read(0, top, left, height, width)

    def overview(self) -> np.ndarray:
        """Returns the middle of the coarsest level, see `SlideSource`."""
        size = self._coarsest.size
        planes = sorted(self._coarsest.focal_planes)
        nearest = min(planes, key=lambda z: abs(z - self._focus))
        return self._read(self._coarsest.level, *middle(size.height, size.width), focus=nearest)

    def close(self) -> None:
        """Closes the files."""
        self._slide.close()

    def _read(
        self, level: int, top: int, left: int, height: int, width: int, *, focus: float | None = None
    ) -> np.ndarray:
        focus = self._focus if focus is None else focus
        return np.asarray(self._slide.read_region((left, top), level, (width, height), z=focus)).astype(
            self.info.dtype, copy=False
        )


def _files_of(path: Path) -> list[Path]:
    """Returns the files of a slide: all of a folder, or those beside a file that are of its series."""
    if path.is_dir():
        return dicom_files(path)
    own = _read_header(path)
    if own is None or "SeriesInstanceUID" not in own:
        return [path]
    others = ((file, _read_header(file)) for file in dicom_files(path.parent) if file != path)
    uid = own.SeriesInstanceUID
    return [path, *(file for file, header in others if header is not None and header.get("SeriesInstanceUID") == uid)]


def _require_readable(paths: Iterable[Path]) -> None:
    """Refuses what wsidicom would leave out without a word: other images, and kinds of pixels that it does not read."""
    kinds, series = [], set()
    for path in paths:
        header = _read_header(path)
        if header is None:
            raise SlideError(f"is damaged or no DICOM file: {path.name}")
        if header.get("SOPClassUID") != _WHOLE_SLIDE:
            kinds.append(header.get("SOPClassUID"))
            continue
        photometric, bits = header.get("PhotometricInterpretation", ""), header.get("BitsStored", 8)
        if photometric == "MONOCHROME1" or (bits != 8 and header.get("SamplesPerPixel", 1) != 1):
            raise SlideError(f"has {bits}-bit pixels of the kind {photometric}, which are not read; save 8-bit RGB")
        if bits % 8 and not header.file_meta.TransferSyntaxUID.is_compressed:  # wsidicom takes their size for bits / 8
            raise SlideError(f"has uncompressed {bits}-bit pixels, which are not read; save them with JPEG 2000")
        kinds.append(_WHOLE_SLIDE)
        series.add(header.get("SeriesInstanceUID"))
    if len(series) > 1:
        raise SlideError(f"holds {len(series)} slides (series of DICOM); give each a folder of its own")
    if _WHOLE_SLIDE not in kinds:
        shown = f" ({getattr(kinds[0], 'name', kinds[0])})" if kinds else ""
        raise SlideError(f"holds no whole slide in DICOM{shown}; save its picture as PNG or TIFF")


def _is_level(header: Any) -> bool:
    """Whether a file holds a level of the slide, and not its label or overview."""
    return "VOLUME" in list(header.get("ImageType") or ())


def _num_pixels(header: Any) -> int:
    return int(header.get("TotalPixelMatrixColumns") or 0) * int(header.get("TotalPixelMatrixRows") or 0)


def _read_header(path: Path) -> Any | None:
    """Returns the tags of a file that are needed here; None if it is no DICOM file.

    Raises:
      ConfigError: if the extra `dicom` is not installed.
      DataError: if the file cannot be opened.
    """
    try:
        status = path.stat()
        return _parse_header(path, status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None


@functools.lru_cache(maxsize=2**14)
def _parse_header(path: Path, num_bytes: int, modified_ns: int) -> Any | None:  # noqa: ARG001 (a changed file is another)
    """Reads a header once for a version of a file: each file of a folder is looked at for each of its slides."""
    try:
        import pydicom  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ConfigError(f"{path}: DICOM slides need an extra: {install_command('dicom')}") from None
    try:
        return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_TAGS)
    except OSError:
        raise
    except Exception:  # noqa: BLE001 (damaged values raise whatever their decoder does)
        return None
