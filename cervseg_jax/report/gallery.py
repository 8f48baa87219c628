"""Images of the report: the gallery, and the previews of each epoch."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cervseg_jax.data.decode import read_image, read_mask
from cervseg_jax.data.label_files import read_labels
from cervseg_jax.data.resize import resize_image, resize_mask
from cervseg_jax.errors import DataError
from cervseg_jax.metrics.catalog import View, shown
from cervseg_jax.report.pictures import fitting_size, jpeg_uri, layers, png_uri, thumbnail
from cervseg_jax.report.review import review_entry
from cervseg_jax.report.run_data import Evaluation, InferenceData, RunData, epoch_folders, number
from cervseg_jax.schema import DataConfig
from cervseg_jax.storage.address import as_path

MAX_THUMBNAILS = 3000
"""Maximum number of images, which keeps the page below about 50 MB."""
MAX_EPOCHS = 40
"""Maximum number of epochs with previews; of more, an even selection is shown."""
PREVIEW_PX = 256
"""Longer side of preview images."""


def evaluated_images(
    evaluation: Evaluation, data: DataConfig, *, num_layered: int, on_progress: Callable[[], None]
) -> list[dict[str, Any]]:
    """Returns the images of an evaluation, lowest Dice first.

    Args:
      evaluation: its folder holds the predictions.
      data: how images and true masks are read.
      num_layered: number of images that open in layers: half of them the worst, the others spread evenly over the rest.
      on_progress: called after each image.

    Returns:
      `name`, `group`, `scores`, `thumbnail` and `layers` of each image; the last two are None if its files are missing.
    """
    layered = _spread(len(evaluation.rows), num_layered)
    entries = []
    for index, row in enumerate(evaluation.rows[:MAX_THUMBNAILS]):
        entry = _entry(row["stem"], row, "gallery")
        try:
            image = read_image(as_path(row["image_path"]), bit_depth=data.bit_depth)
            truth = read_mask(as_path(row["mask_path"]), rule=data.mask_rule).mask
            mask = read_mask(evaluation.folder / "masks" / f"{row['stem']}.png", rule="half_range").mask
            entry["thumbnail"] = thumbnail(image, truth, mask)
            if index in layered:
                probabilities = read_image(evaluation.folder / "probabilities" / f"{row['stem']}.png")[..., 0]
                instances = _labels(evaluation.folder / "instances", row["stem"]) if row.get("instances_path") else None
                entry["layers"] = layers(image, truth, mask, probabilities, instances)
        except DataError:
            pass  # Files were moved or deleted since the evaluation; the scores are still shown.
        entries.append(entry)
        on_progress()
    return entries


def inferred_images(
    inference: InferenceData, *, num_layered: int, on_progress: Callable[[], None]
) -> list[dict[str, Any]]:
    """Returns the images of an inference folder, most uncertain first; see `evaluated_images`."""
    layered = _spread(len(inference.rows), num_layered)
    entries = []
    for index, row in enumerate(inference.rows[:MAX_THUMBNAILS]):
        name = row["image"]
        entry = _entry(name, row, "inference")
        try:
            image = read_image(as_path(row["file"]), bit_depth=inference.bit_depth)
            labels = _labels(inference.folder / "instances", name)
            path = inference.folder / "masks" / f"{name}.png"
            mask = read_mask(path, rule="half_range").mask if path.is_file() or labels is None else labels > 0
            entry["thumbnail"] = thumbnail(image, None, np.asarray(mask, np.uint8))
            if index in layered:
                entry["layers"] = layers(image, None, np.asarray(mask, np.uint8), None, labels)
                entry["review"] = review_entry(image, labels, file=Path(row["file"]))
        except DataError:
            pass  # Files were moved or deleted, or the image is too large to be decoded whole.
        entries.append(entry)
        on_progress()
    return entries


def _entry(name: str, row: Mapping[str, str], view: View) -> dict[str, Any]:
    scores = {score: number(row[score]) for score in shown(view) if row.get(score)}
    return {"name": name, "group": row.get("group", ""), "scores": scores, "thumbnail": None, "layers": None}


def score_texts(view: View) -> dict[str, dict[str, str | None]]:
    """Returns title and better direction of a view's scores, for the page's script."""
    return {name: {"title": score.title, "better": score.better} for name, score in shown(view).items()}


def preview_epochs(run: RunData) -> dict[str, Any] | None:
    """Returns the preview images with their masks after each epoch; None without previews."""
    folders = epoch_folders(run.folder)
    if not folders:
        return None
    every = max(1, -(-len(folders) // MAX_EPOCHS))
    kept = [folder for index, folder in enumerate(folders) if index % every == 0 or index == len(folders) - 1]
    stems = sorted(path.stem for path in kept[-1][1].glob("*.png") if path.name != "sheet.png")
    split = "train" if run.config.data.train_on_valid else "valid"
    known = {row["stem"]: row for row in run.files if row["split"] == split}
    images = []
    for stem in stems:
        if stem not in known:
            continue
        try:
            image = read_image(as_path(known[stem]["image_path"]), bit_depth=run.config.data.bit_depth)
        except DataError:
            continue
        size = fitting_size(image.shape, PREVIEW_PX)
        masks = [_preview(folder / f"{stem}.png", size) for _, folder in kept]
        images.append({"name": stem, "image": jpeg_uri(resize_image(image, size), quality=85), "masks": masks})
    return {"epochs": [epoch for epoch, _ in kept], "images": images} if images else None


def embedded(name: str, value: Any) -> str:
    """Returns a script element with values as JSON, escaped so that no value can end the element."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return f'<script type="application/json" id="{name}">{text}</script>'


def _spread(total: int, count: int) -> set[int]:
    """Returns the first half of `count` indices, and the other half spread over the rest."""
    worst = range(min(total, (count + 1) // 2))
    rest = np.linspace(total - 1, len(worst), count - len(worst)) if total > len(worst) < count else []
    return set(worst) | {round(float(index)) for index in rest}


def _preview(path: Path, size: tuple[int, int]) -> str | None:
    try:
        mask = resize_mask(read_mask(path, rule="half_range").mask, size) > 0
    except DataError:
        return None
    picture = np.zeros((*size, 4), np.uint8)
    picture[mask] = (230, 30, 140, 110)
    return png_uri(picture)


def _labels(folder: Path, stem: str) -> np.ndarray | None:
    for ending in (".png", ".tif"):
        if (folder / f"{stem}{ending}").is_file():
            return read_labels(folder / f"{stem}{ending}")[0]
    return None
