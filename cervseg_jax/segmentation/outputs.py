"""The files that `infer` writes for each image, by output name."""

import importlib.util
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cervseg_jax.annotations.coco import coco_annotations, coco_document, coco_image
from cervseg_jax.annotations.geojson import geojson_document
from cervseg_jax.annotations.imagej import roi_zip
from cervseg_jax.annotations.labelme import labelme_with_masks, path_from
from cervseg_jax.components import lookup
from cervseg_jax.errors import ConfigError
from cervseg_jax.extras import install_command
from cervseg_jax.files import make_folder, write_bytes, write_labels, write_png, write_text
from cervseg_jax.segmentation.images import plane_of
from cervseg_jax.segmentation.pyramids import write_label_pyramid, write_probability_pyramid
from cervseg_jax.segmentation.result import BAND_ROWS, Result
from cervseg_jax.storage.address import Address
from cervseg_jax.tables import csv_text


def _mask(folder: Path, result: Result) -> None:
    write_png(folder / f"{result.name}.png", np.where(result.mask, np.uint8(255), np.uint8(0)))


def _overlay(folder: Path, result: Result) -> None:
    write_png(folder / f"{result.name}.png", result.overlay())


def _instances(folder: Path, result: Result) -> None:
    write_labels(folder, result.name, result.labels)


def _probabilities(folder: Path, result: Result) -> None:
    levels = np.empty(result.mask.shape, np.uint16)
    for top in range(0, len(levels), BAND_ROWS):  # maps of slides are memory-mapped
        band = result.maps[top : top + BAND_ROWS, :, 0].astype(np.float32)
        levels[top : top + BAND_ROWS] = np.round(band * 65535)
    write_png(folder / f"{result.name}.png", levels)


def _color(folder: Path, result: Result) -> None:
    background, nucleus = (np.array(color, np.uint8) for color in result.style.colors)
    write_png(folder / f"{result.name}.png", np.where(result.mask[..., None], nucleus, background))


def _geojson(folder: Path, result: Result) -> None:
    nuclei = result.nuclei
    write_text(
        folder / f"{result.name}.geojson",
        geojson_document(result.name, nuclei.polygons, result.table),
        durable=False,
    )


def _labelme(folder: Path, result: Result) -> None:
    nuclei = result.nuclei
    image_path = _file_name(result) if result.path is None else path_from(folder, result.path)
    text = labelme_with_masks(nuclei.labels, nuclei.polygons, nuclei.table, image_path=image_path, whole=nuclei.extents)
    write_text(folder / f"{result.name}.json", text, durable=False)


def _rois(folder: Path, result: Result) -> None:
    path, polygons = folder / f"{result.name}.zip", result.nuclei.polygons
    if polygons:
        write_bytes(path, roi_zip(polygons), durable=False)
    else:  # ImageJ hangs on an empty archive
        path.unlink(missing_ok=True)


def _coco(folder: Path, result: Result) -> None:
    nuclei = result.nuclei
    image = coco_image(1, _file_name(result), nuclei.labels.shape)
    entries = coco_annotations(nuclei.labels, nuclei.table, image_id=1, first_id=1, whole=nuclei.extents)
    write_text(folder / f"{result.name}.json", coco_document([image], entries), durable=False)


def _measurements(folder: Path, result: Result) -> None:
    table = result.table
    rows = ([result.name, *(_number(value.item()) for value in row)] for row in zip(*table.values(), strict=True))
    write_text(folder / f"{result.name}.csv", csv_text(["image", *table], rows), durable=False)


def _instance_pyramid(folder: Path, result: Result) -> None:
    path = folder / f"{result.name}.ome.tif"
    write_label_pyramid(path, result.labels, mpp=result.style.mpp, scratch=result.scratch)


def _probability_pyramid(folder: Path, result: Result) -> None:
    path = folder / f"{result.name}.ome.tif"
    write_probability_pyramid(path, result.maps[..., 0], mpp=result.style.mpp, scratch=result.scratch)


def _file_name(result: Result) -> str:
    """Name of the image's file in annotations."""
    return f"{result.name}.png" if result.path is None else result.path.name


def _number(value: Any) -> Any:
    if isinstance(value, float):
        return "" if np.isnan(value) else f"{value:.6g}"
    return value


class Output(NamedTuple):
    """A kind of file; each image has one in the output's folder, `OUTPUT/NAME.SUFFIX`."""

    write: Callable[[Path, Result], None]
    """Writes the file of an image into a folder."""
    suffixes: tuple[str, ...] = (".png",)
    """Suffixes that the file may have."""
    is_optional: bool = False
    """Whether images without nuclei have no file."""
    extra: str = ""
    """Extra that must be installed; "" for none."""


OUTPUTS: Mapping[str, Output] = {
    "masks": Output(_mask),
    "overlays": Output(_overlay),
    "instances": Output(_instances, (".png", ".tif")),
    "nuclei": Output(_measurements, (".csv",)),
    "geojson": Output(_geojson, (".geojson",)),
    "probabilities": Output(_probabilities),
    "color": Output(_color),
    "coco": Output(_coco, (".json",)),
    "labelme": Output(_labelme, (".json",)),
    "rois": Output(_rois, (".zip",), is_optional=True),
    "instance_pyramids": Output(_instance_pyramid, (".ome.tif",), extra="slides"),
    "probability_pyramids": Output(_probability_pyramid, (".ome.tif",), extra="slides"),
}
"""Outputs by name."""
RENAMED_OUTPUTS: Mapping[str, str] = {"colour": "color"}
"""Outputs of release 0.1 with their new names; accepted with a notice until release 0.3."""
DEFAULT_OUTPUTS = ("masks", "overlays", "instances", "nuclei", "geojson")
MASK_OUTPUTS = frozenset({"masks", "probabilities", "color", "probability_pyramids"})
"""Outputs that need no label map."""
LABEL_OUTPUTS = frozenset({"overlays", "instances", "instance_pyramids"})
"""Outputs that need the label map, but no measurements."""


def installed_outputs() -> tuple[str, ...]:
    """Returns the outputs that can be written: "all"."""
    return tuple(name for name, output in OUTPUTS.items() if not output.extra or _has_tifffile())


def require_outputs(names: Iterable[str], *, key: str) -> None:
    """Makes sure that outputs exist and can be written.

    Args:
      names: what the user asked for.
      key: the option, for the message.

    Raises:
      ConfigError: if a name is unknown, or the extra that it needs is not installed.
    """
    for name in names:
        output = lookup(OUTPUTS, name, key=key)
        if output.extra and not _has_tifffile():
            raise ConfigError(f"{key}: {name} needs an extra: {install_command(output.extra)}")


def _has_tifffile() -> bool:
    return importlib.util.find_spec("tifffile") is not None


def compute_results(result: Result, outputs: Iterable[str]) -> None:
    """Computes what outputs need; the result keeps it."""
    if not (MASK_OUTPUTS | LABEL_OUTPUTS).issuperset(outputs):
        _ = result.nuclei  # before `labels`, which would compute them a second time
    elif not MASK_OUTPUTS.issuperset(outputs):
        _ = result.labels


def write_results(out: Path, result: Result, outputs: Sequence[str]) -> None:
    """Writes the files of an image; if one of them fails, those written before it are removed again.

    Args:
      out: receives a folder per output.
      result: the image's result.
      outputs: keys of `OUTPUTS`.
    """
    compute_results(result, outputs)
    for index, name in enumerate(outputs):
        try:
            OUTPUTS[name].write(make_folder(out / name), result)
        except BaseException:
            remove_results(out, result.name, outputs[:index])
            raise


def remove_results(out: Path, name: str, outputs: Iterable[str]) -> None:
    """Removes the files of an image, where they are there.

    Args:
      out: folder with a folder per output.
      name: name of the results.
      outputs: keys of `OUTPUTS` or `RENAMED_OUTPUTS`.
    """
    for path in find_results(out, name, outputs):
        path.unlink(missing_ok=True)


def find_results(out: Path, name: str, outputs: Iterable[str]) -> list[Path]:
    """Returns the files of an image that are there; see `remove_results`."""
    paths = (out / output / file for output in outputs for file in result_names(name, output))
    return [path for path in paths if path.is_file() or path.is_symlink()]


def file_sizes(folder: Path) -> dict[str, int]:
    """Returns the size in bytes of each file of a folder, by name; empty if there is no folder."""
    try:
        if isinstance(folder, Address):
            return {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
        with os.scandir(folder) as items:
            return {item.name: item.stat().st_size for item in items if item.is_file()}
    except FileNotFoundError:
        return {}


def has_results(sizes: Mapping[str, Mapping[str, int]], name: str) -> bool:
    """Whether all files of an image are there and not empty.

    Args:
      sizes: `file_sizes` of the folder of each output.
      name: name of the results.
    """
    return all(
        OUTPUTS[output].is_optional or any(files.get(file) for file in result_names(name, output))
        for output, files in sizes.items()
    )


def result_names(name: str, output: str) -> list[str]:
    """Returns the names that an image's file may have in the folder of an output; see `remove_results`."""
    return [f"{name}{suffix}" for suffix in OUTPUTS[RENAMED_OUTPUTS.get(output, output)].suffixes]


TABLES: Mapping[str, str | None] = {"images.csv": None, "failed.csv": None, "nuclei.csv": "nuclei", "coco.json": "coco"}
"""Files about all images, with the output that they need."""
IMAGE_COLUMNS = (
    "image",
    "file",
    "height",
    "width",
    "num_nuclei",
    "foreground",
    "uncertainty",
    "nucleus_px",
    "scale_from",
    "plane",
)


def image_row(result: Result, *, with_nuclei: bool) -> list[Any]:
    """Returns the image's row of `images.csv`, by `IMAGE_COLUMNS`; no count of nuclei where no output needs them."""
    height, width = result.mask.shape
    count = int(result.labels.max(initial=0)) if with_nuclei else ""
    share = float(result.mask.mean())
    scale = ["", ""] if result.scale is None else [f"{result.scale.nucleus_px:.1f}", result.scale.source]
    values = [height, width, count, f"{share:.6f}", f"{result.uncertainty:.6f}", *scale, plane_of(result.image)]
    return [result.name, str(result.path), *values]
