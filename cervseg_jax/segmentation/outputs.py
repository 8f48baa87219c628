"""What `infer` writes for each image, by name."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cervseg_jax.annotations.documents import (
    coco_annotations,
    coco_document,
    coco_image,
    geojson_document,
    labelme_with_masks,
)
from cervseg_jax.annotations.imagej import roi_zip
from cervseg_jax.files import make_folder, read_text, write_bytes, write_labels, write_png, write_text
from cervseg_jax.plots import PREDICTION_COLOR, draw_instance_outlines, tint
from cervseg_jax.segmentation.morphometry import in_micrometers
from cervseg_jax.segmentation.nuclei import Nuclei
from cervseg_jax.segmentation.tiling import ImageLike
from cervseg_jax.segmentation.uncertainty import uncertainty
from cervseg_jax.tables import csv_text

MAX_OVERLAY_PIXELS = 64_000_000
"""Larger images get an overlay of a reduced size."""
BAND_ROWS = 1024


class Result(NamedTuple):
    """What is known about one image."""

    name: str
    path: Path
    image: ImageLike
    maps: np.ndarray
    """Probabilities [h, w, maps]."""
    mask: np.ndarray
    """bool [h, w]."""
    nuclei: Nuclei | None
    """None where no output needs them."""


class Settings(NamedTuple):
    """What the files' looks depend on."""

    mpp: float | None = None
    """Micrometres per pixel."""
    colors: tuple[tuple[int, int, int], tuple[int, int, int]] = ((0, 0, 0), (255, 255, 255))
    """Of background and nuclei in `color`."""


def _mask(folder: Path, result: Result, settings: Settings) -> None:
    write_png(folder / f"{result.name}.png", np.where(result.mask, np.uint8(255), np.uint8(0)))


def _overlay(folder: Path, result: Result, settings: Settings) -> None:
    height, width = result.mask.shape
    step = max(1, int(np.ceil(np.sqrt(height * width / MAX_OVERLAY_PIXELS))))
    band = step * max(1, BAND_ROWS // step)  # slides are read band by band
    bands = [np.asarray(result.image[top : top + band, 0:width])[::step, ::step] for top in range(0, height, band)]
    image = np.concatenate(bands)
    labels = (result.mask if result.nuclei is None else result.nuclei.labels)[::step, ::step]
    picture = draw_instance_outlines(tint(image, labels > 0), labels, color=PREDICTION_COLOR)
    write_png(folder / f"{result.name}.png", picture)


def _instances(folder: Path, result: Result, settings: Settings) -> None:
    write_labels(folder, result.name, _nuclei(result).labels)


def _probabilities(folder: Path, result: Result, settings: Settings) -> None:
    levels = np.empty(result.mask.shape, np.uint16)
    for top in range(0, len(levels), BAND_ROWS):  # maps of slides are on disk
        band = result.maps[top : top + BAND_ROWS, :, 0].astype(np.float32)
        levels[top : top + BAND_ROWS] = np.round(band * 65535)
    write_png(folder / f"{result.name}.png", levels)


def _color(folder: Path, result: Result, settings: Settings) -> None:
    background, nucleus = (np.array(color, np.uint8) for color in settings.colors)
    write_png(folder / f"{result.name}.png", np.where(result.mask[..., None], nucleus, background))


def _geojson(folder: Path, result: Result, settings: Settings) -> None:
    nuclei = _nuclei(result)
    write_text(
        folder / f"{result.name}.geojson",
        geojson_document(result.name, nuclei.polygons, _table(result, settings)),
        durable=False,
    )


def _labelme(folder: Path, result: Result, settings: Settings) -> None:
    nuclei = _nuclei(result)
    text = labelme_with_masks(nuclei.labels, nuclei.polygons, nuclei.table, image_path=result.path.name)
    write_text(folder / f"{result.name}.json", text, durable=False)


def _rois(folder: Path, result: Result, settings: Settings) -> None:
    write_bytes(folder / f"{result.name}.zip", roi_zip(_nuclei(result).polygons), durable=False)


def _coco(folder: Path, result: Result, settings: Settings) -> None:
    nuclei = _nuclei(result)
    image = coco_image(1, result.path.name, nuclei.labels.shape)
    entries = coco_annotations(nuclei.labels, nuclei.table, image_id=1, first_id=1)
    write_text(folder / f"{result.name}.json", coco_document([image], entries), durable=False)


def _measurements(folder: Path, result: Result, settings: Settings) -> None:
    table = _table(result, settings)
    rows = ([result.name, *(_number(value.item()) for value in row)] for row in zip(*table.values(), strict=True))
    write_text(folder / f"{result.name}.csv", csv_text(["image", *table], rows), durable=False)


def _table(result: Result, settings: Settings) -> Mapping[str, np.ndarray]:
    table = _nuclei(result).table
    return table if settings.mpp is None else in_micrometers(table, settings.mpp)


def _nuclei(result: Result) -> Nuclei:
    if result.nuclei is None:
        raise ValueError(f"{result.name}: its nuclei were not asked for")
    return result.nuclei


def _number(value: Any) -> Any:
    if isinstance(value, float):
        return "" if np.isnan(value) else f"{value:.6g}"
    return value


OUTPUTS: Mapping[str, Callable[[Path, Result, Settings], None]] = {
    "masks": _mask,
    "overlays": _overlay,
    "instances": _instances,
    "nuclei": _measurements,
    "probabilities": _probabilities,
    "color": _color,
    "geojson": _geojson,
    "coco": _coco,
    "labelme": _labelme,
    "rois": _rois,
}
"""Each writes one file per image into a folder of its own name."""
DEFAULT_OUTPUTS = ("masks", "overlays", "instances", "nuclei")
WITHOUT_NUCLEI = frozenset({"masks", "probabilities", "color"})


def write_results(out: Path, result: Result, outputs: Sequence[str], settings: Settings) -> None:
    """Writes the chosen files of an image."""
    for name in outputs:
        OUTPUTS[name](make_folder(out / name), result, settings)


def image_row(result: Result) -> list[Any]:
    """Returns the image's line in `images.csv`: see `IMAGE_COLUMNS`."""
    height, width = result.mask.shape
    count = "" if result.nuclei is None else len(result.nuclei.polygons)
    share = float(result.mask.mean())
    return [result.name, str(result.path), height, width, count, f"{share:.6f}", f"{uncertainty(result.maps):.6f}"]


IMAGE_COLUMNS = ("image", "file", "height", "width", "num_nuclei", "foreground", "uncertainty")


def merge_tables(out: Path, names: Sequence[str]) -> None:
    """Joins the measurements of all images into `nuclei.csv`."""
    texts = [read_text(out / "nuclei" / f"{name}.csv") for name in names]
    if texts:
        head = texts[0].partition("\n")[0] + "\n"
        write_text(out / "nuclei.csv", head + "".join(text.partition("\n")[2] for text in texts))


def merge_coco(out: Path, names: Sequence[str]) -> None:
    """Joins the COCO documents of all images into `coco.json`."""
    images, annotations = [], []
    for number, name in enumerate(names, start=1):
        document = json.loads((out / "coco" / f"{name}.json").read_text(encoding="utf-8"))
        images.append({**document["images"][0], "id": number})
        for entry in document["annotations"]:
            annotations.append({**entry, "id": len(annotations) + 1, "image_id": number})
    write_text(out / "coco.json", coco_document(images, annotations))
