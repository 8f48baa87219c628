"""Trainings that `benchmark_accuracy.py` scores: few images, folds, and recipes with one augmentation left out.

Each goes on in its folder where an interrupted call stopped.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accuracy_images import Item, find_items, score_items
from train_pretrained import collect_source

import cervseg_jax
from cervseg_jax.config import load_config
from cervseg_jax.console import Reporter
from cervseg_jax.curation.dataset import make_dataset
from cervseg_jax.curation.recipe import Recipe
from cervseg_jax.data.pairs import Pair, find_pairs
from cervseg_jax.errors import ConfigError
from cervseg_jax.files import make_folder
from cervseg_jax.schema import DataConfig
from cervseg_jax.training.own_data import planned_recipe

SILENT = Reporter(is_silent=True)
FRESH = (
    "train.init_from=null",
    "train.init_share=0",
    "train.learning_rate=1e-3",
    "infer.min_probability=null",
)
"""A plan adapts weights with half of this rate, and takes their confidence."""
STARTS: dict[str, tuple[str, ...]] = {
    "pap": (),
    "ImageNet": (*FRESH, "model.args.encoder_weights=imagenet"),
    "random": (*FRESH, "model.args.encoder_weights=null"),
}
NUM_FOLDS = 3
OWN_SCALE = (
    "data.nucleus_px=null",
    "model.image_size=[256,320]",
    "augment.operations="
    + json.dumps(
        [
            {"name": "flip"},
            {
                "name": "affine",
                "probability": 0.8,
                "args": {"scale": [0.7, 1.4], "max_shift": 0.05, "max_degrees": 180},
            },
            {"name": "stain", "probability": 0.6, "args": {"max_gain": 0.3, "max_offset": 0.05}},
            {"name": "reinhard", "probability": 0.5, "args": {"max_shift": 15.0, "max_gain": 0.3}},
            {"name": "color", "probability": 0.7, "args": {"brightness": 0.1, "contrast": 0.2}},
            {"name": "blur", "probability": 0.2},
        ]
    ),
    "train.epochs=16",
    "train.steps_per_epoch=50",
    "train.batch_size=4",
    "train.selection_epochs=3",
)
"""The recipe `pap` on images of 256x320 pixels as they are: 800 updates from ImageNet."""
PASTED = {"name": "overlap", "probability": 0.5, "args": {"max_copies": 6, "degree": [0.0, 0.5]}}
SHORT = ("train.epochs=3", "train.steps_per_epoch=100")


def copy_items(items: Sequence[Item], folder: Path) -> Path:
    """Copies images with their truth into a folder that `prepare` reads."""
    for item in items:
        kind = "labels" if item.is_labelled else "masks"
        for name, path in (("images", item.path), (kind, item.truth_path)):
            shutil.copyfile(path, make_folder(folder / name) / path.name)
    return folder


def minutes_of(run: Path) -> float:
    """Returns the time of all epochs of a run by the clock, also of one that was interrupted."""
    lines = (run / "log.jsonl").read_text(encoding="utf-8").splitlines()
    seconds = {event["epoch"]: event["seconds"] for event in map(json.loads, lines) if event["event"] == "epoch"}
    return sum(seconds.values()) / 60


def train_and_score(
    recipe: Path | str, overrides: Sequence[str], folder: Path, tests: Sequence[Item]
) -> dict[str, Any]:
    """Trains in `folder/run` and scores images."""
    run = cervseg_jax.train(recipe, list(overrides), run_dir=folder / "run")
    segmenter = cervseg_jax.load(run)
    scores = score_items(tests, lambda image: segmenter(image).labels, folder / "overlays")
    return scores | {"minutes": minutes_of(folder / "run")}


def few_sources(items: Sequence[Item], count: int, *, seed: int) -> set[str]:
    """Returns the sources of a small training set; those of a smaller count are among them."""
    sources = np.random.default_rng(seed).permutation(sorted({item.source for item in items}))
    return set(sources[:count].tolist())


def held_out_sources(items: Sequence[Item], fold: int, *, seed: int) -> set[str]:
    """Returns the sources that a fold is scored on; each is held out by one fold."""
    sources = np.random.default_rng(seed).permutation(sorted({item.source for item in items}))
    return set(sources[fold::NUM_FOLDS].tolist())


def train_few(
    items: Sequence[Item], count: int, start: str, folder: Path, *, seed: int, overrides: Sequence[str]
) -> dict[str, Any]:
    """Trains with `train --data` on some sources and scores the others.

    Args:
      items: images of one set.
      count: number of sources to train on.
      start: one of `STARTS`.
      folder: for the training.
      seed: of the split and of the training.
      overrides: further settings.

    Returns:
      As `score_items`, and "minutes".
    """
    chosen = few_sources(items, count, seed=seed)
    source = copy_items([item for item in items if item.source in chosen], folder / "images_for_training")
    recipe = planned_recipe(source, folder / "run", reporter=SILENT).path
    # Only weights that know the other heads can do without instance labels.
    heads = () if items[0].is_labelled or start == "pap" else ("model.heads=[mask]", "train.touching_weight=0")
    settings = [f"train.seed={seed}", *STARTS[start], *heads, *overrides]
    return train_and_score(recipe, settings, folder, [item for item in items if item.source not in chosen])


def fold_dataset(items: Sequence[Item], fold: int, folder: Path, *, seed: int) -> tuple[Path, list[Item]]:
    """Makes the dataset of a fold.

    Returns:
      Folder with `train` and `valid`, a fifth of the sources, and the images that are held out.
    """
    held_out = held_out_sources(items, fold, seed=seed)
    dataset = folder / "dataset"
    if not (dataset / "overview.html").exists():
        source = copy_items([item for item in items if item.source not in held_out], folder / "source")
        make_dataset(source, dataset, Recipe(valid=0.2, test=0.0), reporter=SILENT)
    return dataset, [item for item in items if item.source in held_out]


def train_fold(
    items: Sequence[Item], fold: int, folder: Path, *, seed: int, overrides: Sequence[str]
) -> dict[str, Any]:
    """Trains on two thirds of the sources at the images' own scale and scores the others."""
    dataset, tests = fold_dataset(items, fold, folder, seed=seed)
    settings = [f"data.root={dataset.absolute()}", f"train.seed={seed}", *OWN_SCALE, *overrides]
    return train_and_score("pap", settings, folder, tests)


def stardist_fold(
    items: Sequence[Item], fold: int, folder: Path, *, seed: int, python: Path, minutes: float
) -> dict[str, Any]:
    """Trains StarDist from scratch on the same fold, in an environment of its own, and scores its labels.

    Args:
      items: images of one set.
      fold: number of the fold.
      folder: for its files.
      seed: of the folds and of the training.
      python: interpreter of an environment with `stardist` and `tensorflow-cpu`.
      minutes: CPU time of its training.

    Returns:
      As `score_items`, and "minutes".
    """
    dataset, tests = fold_dataset(items, fold, folder, seed=seed)
    pairs, _ = find_pairs(DataConfig(root=dataset))
    arrays = {f"test_image_{index}": item.image() for index, item in enumerate(tests)}
    for split in ("train", "valid"):
        for index, pair in enumerate(pairs[split]):
            item = Item(pair.image_path, _labels_path(pair), True, pair.group)
            arrays |= {f"{split}_image_{index}": item.image(), f"{split}_labels_{index}": item.labels()}
    np.savez(folder / "images.npz", **arrays)  # pyright: ignore[reportArgumentType]
    script = Path(__file__).parent / "stardist_peer.py"
    command = [str(python), str(script), str(folder / "images.npz"), str(folder / "labels.npz")]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(
        [*command, "--minutes", str(minutes), "--seed", str(seed)],
        check=True,
        env=environment | {"KERAS_BACKEND": "tensorflow"},
    )
    with np.load(folder / "labels.npz") as found:
        labels = {item.path: found[f"test_labels_{index}"] for index, item in enumerate(tests)}
    order = iter(tests)
    return score_items(tests, lambda _: labels[next(order).path], folder / "overlays") | {"minutes": minutes}


def _labels_path(pair: Pair) -> Path:
    if pair.instances_path is None:
        raise ConfigError(f"{pair.image_path}: has no instance labels, which StarDist needs")
    return pair.instances_path


def augmentation_variants() -> dict[str, list[str]]:
    """Returns the settings of each variant of the recipe `pap`: all augmentations, all but one, and one more."""
    every = [entry.model_dump() for entry in load_config("pap").augment.operations]
    operations = {"all": every}
    for name in (entry["name"] for entry in every if entry["name"] != "flip"):
        operations[f"without {name}"] = [entry for entry in every if entry["name"] != name]
    operations["with pasted nuclei"] = [PASTED, *every]
    variants = {name: [f"augment.operations={json.dumps(entries)}"] for name, entries in operations.items()}
    return variants | {"without scale": [*variants["all"], "augment.window.scale=[0.99,1.01]"]}


def train_variant(
    data: Path, variant: str, folder: Path, *, seed: int, sets: Sequence[str], overrides: Sequence[str]
) -> dict[str, Any]:
    """Trains a short form of the recipe `pap` from ImageNet and scores laboratories that it has not seen.

    Args:
      data: folder of the sets.
      variant: one of `augmentation_variants`.
      folder: for the training; its parent holds the dataset of all variants.
      seed: of the training.
      sets: sets that are scored.
      overrides: further settings.

    Returns:
      As `score_items`, and "minutes".
    """
    dataset = folder.parent / "dataset"
    if not (dataset / "overview.html").exists():
        recipe = Recipe(annotations="labels", valid=0.1, test=0.2, seed=1)
        make_dataset(collect_source(data, folder.parent), dataset, recipe, reporter=SILENT)
    settings = [f"data.root={dataset.absolute()}", f"train.seed={seed}", *augmentation_variants()[variant], *SHORT]
    tests = [item for name in sets for item in find_items(data, name)]
    return train_and_score("pap", [*settings, *overrides], folder, tests)
