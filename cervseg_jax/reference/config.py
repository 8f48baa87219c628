"""Conversion of reference configs to YAML recipes, with a note on every key."""

import json
import os
from pathlib import Path
from typing import Any

import yaml

from cervseg_jax.components import nearest
from cervseg_jax.errors import ConfigError
from cervseg_jax.reference.families import FAMILIES
from cervseg_jax.reference.ini import read_ini
from cervseg_jax.reference.reader import Note, Reader

LOSS_NAMES = {
    "basnet_hybrid_loss": "basnet_hybrid",
    "bce_dice_loss": "bce_dice",
    "bce_iou_loss": "bce_iou",
    "binary_crossentropy": "bce",
    "binarycrossentropy": "bce",
    "dice_loss": "dice",
    "iou_loss": "iou",
    "jacard_loss": "iou",
}
METRIC_NAMES = {
    "binary_accuracy": "accuracy_pooled",
    "binaryaccuracy": "accuracy_pooled",
    "dice_coef": "dice_coef",
    "iou_coef": "iou_pooled",
    "jacard_similarity": "iou_pooled",
    "sensitivity": "recall_pooled",
    "specificity": "specificity_pooled",
}
REFERENCE_SEED = 137
ADAMW_DECAY = 0.004
"""Default weight decay of `tf.keras.optimizers.AdamW`."""


def import_config(path: Path) -> tuple[str, list[Note]]:
    """Converts a config of the reference implementation to a YAML recipe.

    Args:
      path: the config file, such as `train_eval_infer.config`.

    Returns:
      YAML text that `load_config` accepts, and one note per key of the file. Relative paths in the file are resolved
      against its folder, because the reference is run from there.

    Raises:
      ConfigError: if the file cannot be read, the image size is missing, or the model or loss is unknown.
    """
    reader = Reader(read_ini(path))
    name = reader.get("model.model", "TensorflowUNet", to="model.name", kind=str)
    if name not in FAMILIES:
        guess = nearest(str(name), FAMILIES)
        raise ConfigError(f"{path}: model.model: unknown {name!r}" + (f"; did you mean {guess!r}?" if guess else ""))
    height, width = (reader.get(f"model.image_{side}", to="model.image_size") for side in ("height", "width"))
    if not height or not width:
        raise ConfigError(f"{path}: model.image_height and model.image_width are required")
    family, make_args = FAMILIES[name]
    recipe = {
        "model": {"name": family, "image_size": [int(height), int(width)], "args": make_args(reader)},
        "data": _data(reader, path),
        "augment": {"operations": _operations(reader)},
        "train": _train(reader, path, name),
        "eval": {"batch_size": int(reader.get("eval.batch_size", 4, to="eval.batch_size"))},
        "infer": _infer(reader),
    }
    plain = json.loads(json.dumps(recipe))
    text = yaml.safe_dump(plain, sort_keys=False, default_flow_style=None, width=100)
    return f"# Converted from {path.name} of the reference implementation.\n{text}", reader.report()


def _train(reader: Reader, path: Path, model: str) -> dict[str, Any]:
    loss = str(reader.get("model.loss", "bce_dice_loss", to="train.loss", kind=str))
    simple = loss.rpartition(".")[2].removesuffix("()")
    known = LOSS_NAMES.get(simple.lower())
    if known is None:
        raise ConfigError(f"{path}: model.loss: unknown {loss!r}; known: {', '.join(sorted(LOSS_NAMES))}")
    patience = int(reader.get("train.patience", 10, to="train.early_stop_patience"))
    plateau = None
    if reader.get("train.learning_rate_reducer", False, to="train.plateau", kind=bool):
        half = int(patience / 2) or 5
        plateau = {
            "factor": reader.get("train.reducer_factor", 0.1, to="train.plateau.factor"),
            "patience": int(reader.get("train.reducer_patience", half, to="train.plateau.patience")),
        }
    steps = reader.get("train.steps_per_epoch", 400, to="train.steps_per_epoch")
    online = reader.get("model.generator", False, to="augment.operations", kind=bool)
    section = {
        "epochs": int(reader.get("train.epochs", 100, to="train.epochs")),
        "batch_size": int(reader.get("train.batch_size", 2, to="train.batch_size")),
        "steps_per_epoch": int(steps) if online else None,
        "learning_rate": float(reader.get("model.learning_rate", 1e-4, to="train.learning_rate")),
        "clip_value": float(reader.get("model.clipvalue", 0.2, to="train.clip_value")),
        "loss": known,
        "batch_norm_warmup": False,
        "metrics": _metrics(reader),
        "plateau": plateau,
        "early_stop_patience": patience if patience > 0 else None,
        "seed": REFERENCE_SEED,
    }
    if str(reader.get("model.optimizer", "Adam", to="train.weight_decay", kind=str)).lower() == "adamw":
        section["weight_decay"] = ADAMW_DECAY
    if model == "TensorflowUNet3Plus":
        section["l2_penalty"] = 1e-4
    return section


def _metrics(reader: Reader) -> list[str]:
    given = reader.get("model.metrics", ["dice_coef"], to="train.metrics", kind=(list, tuple, str))
    names = [given] if isinstance(given, str) else list(given)
    columns = [METRIC_NAMES.get(str(name).rpartition(".")[2].lower()) for name in names]
    unknown = [str(name) for name, column in zip(names, columns, strict=True) if column is None]
    if unknown:
        message = f"unknown metrics removed: {', '.join(unknown)}"
        reader.notes["model.metrics"] = Note("model.metrics", "repaired", message)
    return list(dict.fromkeys([*(column for column in columns if column), "dice_mean"]))


def _data(reader: Reader, path: Path) -> dict[str, Any]:
    """Returns the `data` section; the root is the common parent of `train/images`, `valid/images` and so on."""
    folders = []
    for section in ("train", "eval", "test"):
        for kind in ("image", "mask"):
            value = reader.get(f"{section}.{kind}_datapath", to="data.root", kind=str)
            if value:
                folders.append(os.path.normpath(str(value).replace("\\", "/")))
    root = os.path.commonpath(folders) if folders else "."
    while os.path.basename(root) in ("train", "valid", "test", "images", "masks"):
        root = os.path.dirname(root)
    if "\0" in root:
        raise ConfigError(f"{path}: its data paths hold a zero byte")
    absolute = (path.absolute().parent / root).resolve()
    if reader.get("mask.binarize", False, to="data.mask_rule", kind=bool):
        reader.get("mask.threshold", 127, to="data.mask_rule")
        return {"root": str(absolute), "mask_rule": "half_range"}
    # Without binarization the reference treats every nonzero mask value as nucleus.
    return {"root": str(absolute), "mask_rule": "any_nonzero"}


def _infer(reader: Reader) -> dict[str, Any]:
    """Returns the `infer` section, with tiling if the file has a `tiledinfer` section."""
    section: dict[str, Any] = {
        "batch_size": int(reader.get("train.batch_size", 2, to="train.batch_size")),
        "num_infer_images": int(reader.get("train.num_infer_images", 1, to="infer.num_infer_images")),
    }
    colors = [str(reader.get(f"segmentation.{name}", name, to="infer.colors", kind=str)) for name in ("black", "white")]
    if colors != ["black", "white"]:
        section["colors"] = colors
    if not any(key.startswith("tiledinfer.") for key in reader.entries):
        return section
    # The reference adds the margin on each side of a tile, so neighboring tiles overlap by twice the margin.
    margin = int(reader.get("tiledinfer.overlapping", 0, to="infer.tiled.overlap_px"))
    blends = bool(reader.get("tiledinfer.bitwise_blending", True, to="infer.tiled.blend_whole", kind=bool))
    section["tiled"] = {"overlap_px": 2 * margin, "blend_whole": blends}
    rule = str(reader.get("tiledinfer.algorithm", "", to="infer.threshold_rule", kind=str)).rpartition(".")[2].lower()
    rule = rule.removeprefix("thresh_")
    if rule in ("otsu", "triangle"):
        section["threshold_rule"] = rule
    if reader.get("tiledinfer.binarize", False, to="infer.threshold", kind=bool):
        level = int(reader.get("tiledinfer.threshold", 127, to="infer.threshold"))
        section["threshold"] = min(max(level / 255, 0.01), 0.99)
    return section


def _operations(reader: Reader) -> list[dict[str, Any]]:
    """Maps the operations of the online augmentor to the closest ones in `AUGMENTATIONS`; empty if it is off."""
    online = reader.get("model.generator", False, to="augment.operations", kind=bool)
    if not online or not reader.get("generator.augmentation", True, to="augment.operations", kind=bool):
        return []

    def is_on(name: str, default: bool) -> bool:
        return bool(reader.get(f"augmentor.{name}", default, to="augment.operations", kind=bool))

    operations: list[dict[str, Any]] = []
    if is_on("hflip", True) | is_on("vflip", True):
        operations.append({"name": "flip"})
    if is_on("rotation", True):
        reader.get("augmentor.angles", to="augment.operations", kind=list)
        operations.append({"name": "rotate90"})
    shrinks = reader.get("augmentor.shrinks", [0.8], to="augment.operations", kind=list)
    shears = reader.get("augmentor.shears", [], to="augment.operations", kind=list)
    if shrinks or shears:
        args = {
            "max_degrees": 0.0,
            "scale": [float(min([*shrinks, 1.0])), 1.0],
            "max_shift": 0.0,
            "max_shear": float(max([*map(abs, shears), 0.0])),
        }
        operations.append({"name": "affine", "probability": 0.5, "args": args})
    if is_on("deformation", False):
        operations.append({"name": "elastic", "probability": 0.5})
    if is_on("distortion", False):
        operations.append({"name": "elastic", "probability": 0.5, "args": {"max_shift_px": 10.0, "sigma_px": 40.0}})
    if is_on("barrdistortion", False) | is_on("pincdistortion", False):
        radius = float(reader.get("barrdistortion.radius", 0.5, to="augment.operations"))
        amount = abs(float(reader.get("barrdistortion.amount", 0.5, to="augment.operations")))
        operations.append({"name": "bulge", "probability": 0.5, "args": {"radius": radius, "max_amount": amount}})
    if is_on("sharpening", False):
        operations.append({"name": "sharpen", "probability": 0.5})
    if is_on("brightening", False):
        operations.append({"name": "color", "probability": 0.5})
    return operations
