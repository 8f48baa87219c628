"""The images of a page: which ones, how large, with which scores."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cervseg_jax.choices import MaskRule
from cervseg_jax.data.decode import read_image, read_mask
from cervseg_jax.data.label_files import read_labels
from cervseg_jax.data.resize import resize_image, resize_mask
from cervseg_jax.errors import DataError
from cervseg_jax.report.facts import InferenceFacts, PartFacts, RunFacts, epoch_folders
from cervseg_jax.report.pictures import fitting_size, jpeg_uri, layers, png_uri, thumbnail

PIXEL_SCORES = ("dice", "iou", "precision", "recall", "brier", "doubt")
NUCLEUS_SCORES = ("pq", "aji", "pq_touching", "num_true", "num_predicted")
INFERENCE_SCORES = ("doubt", "num_nuclei", "foreground")
MAX_THUMBNAILS = 3000
MAX_EPOCHS = 40
PREVIEW_PX = 256


def evaluated_images(
    part: PartFacts, mask_rule: MaskRule, *, num_layered: int, on_progress: Callable[[], None]
) -> list[dict[str, Any]]:
    """Returns the images of an evaluated part, worst first.

    Args:
      part: with its predictions.
      mask_rule: see `decode_mask`.
      num_layered: how many images can be looked at in layers: half of them the worst, the rest spread evenly.
      on_progress: called after each image.

    Returns:
      For each image `name`, `group`, `scores`, `thumbnail` and `layers`, which may be null.
    """
    chosen = _spread(len(part.rows), num_layered)
    found = []
    for number, row in enumerate(part.rows[:MAX_THUMBNAILS]):
        entry = {
            "name": row["stem"],
            "group": row["group"],
            "scores": {
                name: _number(row[name]) for name in (*PIXEL_SCORES, *NUCLEUS_SCORES) if row.get(name) not in (None, "")
            },
            "thumbnail": None,
            "layers": None,
        }
        try:
            image = read_image(Path(row["image_path"]))
            truth = read_mask(Path(row["mask_path"]), rule=mask_rule).mask
            mask = read_mask(part.folder / "masks" / f"{row['stem']}.png", rule="half_range").mask
            entry["thumbnail"] = thumbnail(image, truth, mask)
            if number in chosen:
                probabilities = read_image(part.folder / "probabilities" / f"{row['stem']}.png")[..., 0]
                instances = _labels(part.folder / "instances", row["stem"]) if row.get("instances_path") else None
                entry["layers"] = layers(image, truth, mask, probabilities, instances)
        except DataError:
            pass  # moved since; the scores are still worth showing
        found.append(entry)
        on_progress()
    return found


def inferred_images(
    facts: InferenceFacts, *, num_layered: int, on_progress: Callable[[], None]
) -> list[dict[str, Any]]:
    """Returns inferred images, the most doubtful first; as `evaluated_images`."""
    chosen = _spread(len(facts.rows), num_layered)
    found = []
    for number, row in enumerate(facts.rows[:MAX_THUMBNAILS]):
        name = row["image"]
        entry = {
            "name": name,
            "group": "",
            "scores": {key: _number(row[key]) for key in INFERENCE_SCORES},
            "thumbnail": None,
            "layers": None,
        }
        try:
            image = read_image(Path(row["file"]))
            labels = _labels(facts.folder / "instances", name)
            path = facts.folder / "masks" / f"{name}.png"
            mask = read_mask(path, rule="half_range").mask if path.is_file() or labels is None else labels > 0
            entry["thumbnail"] = thumbnail(image, None, np.asarray(mask, np.uint8))
            if number in chosen:
                entry["layers"] = layers(image, None, np.asarray(mask, np.uint8), None, labels)
        except DataError:
            pass  # moved since, or too large to be decoded whole
        found.append(entry)
        on_progress()
    return found


def preview_epochs(facts: RunFacts) -> dict[str, Any] | None:
    """Returns the preview images with their masks after each epoch; None where there are no previews."""
    folders = epoch_folders(facts.folder)
    if not folders:
        return None
    every = max(1, -(-len(folders) // MAX_EPOCHS))
    kept = [folder for number, folder in enumerate(folders) if number % every == 0 or number == len(folders) - 1]
    stems = sorted(path.stem for path in kept[-1][1].glob("*.png") if path.name != "sheet.png")
    known = {row["stem"]: row for row in facts.data if row["split"] == "valid" and Path(row["image_path"]).is_file()}
    images = []
    for stem in stems:
        if stem not in known:
            continue
        try:
            image = read_image(Path(known[stem]["image_path"]))
        except DataError:
            continue
        size = fitting_size(image.shape, PREVIEW_PX)
        masks = [_preview(folder / f"{stem}.png", size) for _, folder in kept]
        images.append({"name": stem, "image": jpeg_uri(resize_image(image, size), quality=85), "masks": masks})
    return {"epochs": [epoch for epoch, _ in kept], "images": images} if images else None


def embedded(name: str, value: Any) -> str:
    """Returns values for the page's script; no text in them can end the element."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return f'<script type="application/json" id="{name}">{text}</script>'


def _spread(count: int, wanted: int) -> set[int]:
    worst = range(min(count, (wanted + 1) // 2))
    rest = np.linspace(count - 1, len(worst), wanted - len(worst)) if count > len(worst) < wanted else []
    return set(worst) | {round(float(number)) for number in rest}


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


def _number(text: str) -> float | None:
    value = float(text)
    return round(value, 6) if np.isfinite(value) else None
