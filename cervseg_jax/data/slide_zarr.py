"""Slides as OME-Zarr, versions 0.1 to 0.5 (https://ngff.openmicroscopy.org): folders of chunks with JSON metadata."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cervseg_jax.data.ome import MICROMETERS, Channel, are_colors, color_of_hex, describe_channels
from cervseg_jax.data.slide_source import SlideError, SlideInfo, middle, middle_plane
from cervseg_jax.storage.address import Address
from cervseg_jax.storage.zarr_store import zarr_source

ZARR_SUFFIX = ".zarr"
_METADATA = ("zarr.json", ".zattrs", ".zgroup")
"""Files of a group: of Zarr 3, and of Zarr 2."""
_OLD_AXES = "tczyx"
"""Axes of versions 0.1 and 0.2, which do not name them."""


def is_zarr(path: Path) -> bool:
    """Whether a path is a folder with the metadata of Zarr; at an address, it must be called so as well."""
    if isinstance(path, Address) and path.suffix.lower() != ZARR_SUFFIX:
        return False  # without asking
    return path.is_dir() and any((path / name).is_file() for name in _METADATA)


def is_slide_folder(path: Path) -> bool:
    """Whether an image is a folder; at addresses those of Zarr alone are."""
    return is_zarr(path) if isinstance(path, Address) else path.is_dir()


def zarr_pixel_size(path: Path) -> tuple[float, float]:
    """Returns height and width of a pixel in micrometers; zeros where the metadata do not state them.

    Raises:
      SlideError: if the folder holds no picture.
    """
    image = _find_image(path)
    scales = [image.scale, image.common_scale]
    return _size(image.axes, scales, "y"), _size(image.axes, scales, "x")


def _size(axes: Sequence[Mapping[str, str]], scales: Sequence[Sequence[float]], name: str) -> float:
    index = next(index for index, axis in enumerate(axes) if axis["name"] == name)
    size = MICROMETERS.get(axes[index].get("unit", ""), 0.0)
    for scale in scales:
        size *= float(scale[index]) if len(scale) == len(axes) else 1.0
    return size


class ZarrSource:
    """A slide as OME-Zarr, see `SlideSource`. Chunks that are not there have the fill value, as Zarr says."""

    def __init__(self, path: Path) -> None:
        """Opens a folder.

        Raises:
          ImportError: if the extra `slides` is not installed.
          SlideError: if it holds no picture, or one that is not read.
          Exception: whatever Zarr raises for damaged metadata.
        """
        import zarr  # pyright: ignore[reportMissingImports]

        image = _find_image(path)
        self._levels: list[Any] = [
            zarr.open_array(zarr_source(image.folder / level), mode="r") for level in image.levels
        ]
        self._axes = "".join(axis["name"] for axis in image.axes)
        if len(self._axes) != self._levels[0].ndim:
            raise SlideError(f"is damaged: {len(self._axes)} axes for an array of {self._levels[0].ndim} dimensions")
        shape = dict(zip(self._axes, self._levels[0].shape, strict=True))
        num_channels = shape.get("c", 1)
        channels = image.channels if len(image.channels) == num_channels else [Channel()] * num_channels
        dtype = np.dtype(self._levels[0].dtype)
        if shape.get("t", 1) > 1:
            raise SlideError(f"holds {shape['t']} points in time; save one picture")
        if num_channels > 1 and not (dtype == np.uint8 and are_colors(channels)):
            raise SlideError(f"holds {describe_channels(channels)}; save one gray or RGB picture")
        if dtype not in (np.uint8, np.uint16):
            raise SlideError(f"has {dtype} pixels; 8-bit or 16-bit is needed")
        index, plane = middle_plane(shape.get("z", 1))
        self._chosen: dict[str, Any] = {"t": 0, "z": index, "c": slice(None)}
        self.info = SlideInfo(shape["y"], shape["x"], num_channels, dtype, plane=plane)

    def read(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Returns a window, see `SlideSource`."""
        return self._read(0, top, left, height, width)

    def overview(self) -> np.ndarray:
        """Returns the middle of the coarsest level, see `SlideSource`."""
        level = len(self._levels) - 1
        shape = dict(zip(self._axes, self._levels[level].shape, strict=True))
        return self._read(level, *middle(shape["y"], shape["x"]))

    def close(self) -> None:
        """Does nothing: files are open only while a window is read."""

    def _read(self, level: int, top: int, left: int, height: int, width: int) -> np.ndarray:
        window = self._chosen | {"y": slice(top, top + height), "x": slice(left, left + width)}
        values = np.asarray(self._levels[level][tuple(window[axis] for axis in self._axes)])
        kept = [axis for axis in self._axes if isinstance(window[axis], slice)]
        return values.transpose([kept.index(axis) for axis in "yxc" if axis in kept])


class _Image:
    """The metadata of a multiscale picture."""

    def __init__(self, folder: Path, attributes: Mapping[str, Any]) -> None:
        multiscale: dict[str, Any] = attributes["multiscales"][0]
        datasets = multiscale["datasets"]
        self.folder = folder
        self.levels: list[str] = [dataset["path"] for dataset in datasets]
        axes = multiscale.get("axes", _OLD_AXES)
        self.axes: list[dict[str, str]] = [{"name": axis} if isinstance(axis, str) else axis for axis in axes]
        names = [axis["name"] for axis in self.axes]
        if not {"y", "x"} <= set(names) <= set(_OLD_AXES) or len(set(names)) < len(names):
            raise SlideError(f"has the axes {', '.join(names)}; y and x, and of t, c and z some, are needed")
        self.scale = _scale_in(datasets[0])
        self.common_scale = _scale_in(multiscale)
        described = attributes.get("omero", {}).get("channels", [])
        self.channels = [Channel(str(one.get("label", "")), color_of_hex(str(one.get("color")))) for one in described]


def _scale_in(entry: Mapping[str, Any]) -> Sequence[float]:
    transformations = entry.get("coordinateTransformations", ())
    return next((one["scale"] for one in transformations if one.get("type") == "scale" and "scale" in one), ())


def _find_image(path: Path) -> _Image:
    """Reads the metadata of a folder's picture, or of the first one where a converter wrote several.

    Raises:
      SlideError: if there is none.
    """
    try:
        attributes = _read_attributes(path)
        if "plate" in attributes or "well" in attributes:
            raise SlideError("is a plate of OME-Zarr; give its pictures one by one")
        if "multiscales" not in attributes and (path / "0").is_dir():  # bioformats2raw's layout
            path = path / "0"
            attributes = _read_attributes(path)
        if "multiscales" not in attributes:
            raise SlideError("is a Zarr folder without a picture (no multiscales of OME-Zarr)")
        return _Image(path, attributes)
    except (OSError, LookupError, TypeError, AttributeError) as error:
        raise SlideError(f"has damaged metadata of OME-Zarr: {type(error).__name__}: {error}") from None
    except json.JSONDecodeError as error:
        raise SlideError(f"has damaged metadata of OME-Zarr: {error}") from None


def _read_attributes(folder: Path) -> dict[str, Any]:
    """Returns the attributes of a group; from version 0.5 on, OME-Zarr keeps them under the key "ome"."""
    if (folder / "zarr.json").is_file():
        attributes = json.loads((folder / "zarr.json").read_bytes()).get("attributes", {})
        return attributes.get("ome", attributes)
    if (folder / ".zattrs").is_file():
        return dict(json.loads((folder / ".zattrs").read_bytes()))
    return {}
