"""Simulates active learning: score against number of annotated images, for `suggest` and for random choice.

    python scripts/active_learning.py DATA OUT [--seeds 5] [--sets dsb2018_stained bttfa_lbc]

DATA holds `dsb2018_stained/{images,labels}` and `bttfa_lbc/{images,masks}`; of the latter, the middle 256x256 pixels of
each image are used. For each seed 20 sources are held out, and 30 others are the pool. Both ways of choosing
begin with the same network, trained on the same random images from ImageNet weights of the encoder. In each round they
"annotate" more images (their truth is looked up) and train on. `suggest` takes the images that the package's `select`
takes: mean entropy near nuclei times the distance of encoder features. A finished seed is not computed again.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from cervseg_jax.config import load_config
from cervseg_jax.data.augment import AUGMENTATIONS, apply_operations
from cervseg_jax.data.batch import Element, collate
from cervseg_jax.data.decode import read_image, read_mask
from cervseg_jax.data.geometric import random_window
from cervseg_jax.data.label_files import read_labels
from cervseg_jax.data.samples import Sample
from cervseg_jax.engine.experiment import CompiledSteps, Experiment, build_experiment
from cervseg_jax.engine.predict import make_predict
from cervseg_jax.engine.state import TrainState
from cervseg_jax.files import make_folder, write_json
from cervseg_jax.metrics.instance import count_instances, join_counts, panoptic_quality
from cervseg_jax.models import backend_for, build_abstract
from cervseg_jax.models.embedding import make_features
from cervseg_jax.schema import PostprocessingConfig
from cervseg_jax.segmentation.instances import label_instances
from cervseg_jax.segmentation.uncertainty import uncertainty
from cervseg_jax.suggestions.selection import select

SETS = ("dsb2018_stained", "bttfa_lbc")
MODEL = "efficientnet_lite0_unet"
WINDOW = (128, 128)
BATCH_SIZE = 4
FIRST, PER_ROUND, NUM_ROUNDS = 2, 2, 4
POOL, TEST = 30, 20
FIRST_STEPS, STEPS_PER_ROUND = 60, 30
LEARNING_RATE = 1e-3
"""At the start of a round; it falls to 0 at its end, so that the score does not hang on the last steps."""
CROP_PX = 256
SETTINGS = (
    f"model.image_size={list(WINDOW)}",
    "model.heads=[mask]",
    "train.touching_weight=0",
    f"train.batch_size={BATCH_SIZE}",
    "train.ema_decay=0.9",
)
OPERATIONS = (
    (random_window, 1.0, {"size": WINDOW, "scale": (0.7, 1.4), "max_degrees": 180.0, "nucleus_share": 0.5}),
    (AUGMENTATIONS["flip"], 1.0, {}),
    (AUGMENTATIONS["stain"], 0.5, {}),
    (AUGMENTATIONS["color"], 0.5, {}),
)


class Item(NamedTuple):
    """An image with its truth."""

    source: str
    image: np.ndarray
    """uint8 [h, w, 3]."""
    labels: np.ndarray
    """int32 [h, w]."""


class Bench(NamedTuple):
    """What all seeds of a set share: compiled functions and their shapes."""

    experiment: Experiment
    start: TrainState
    """Initial state, in memory that no step takes."""
    steps: CompiledSteps
    predict: Any
    features: Any


def read_items(data: Path, name: str) -> list[Item]:
    """Reads a set; equal sizes within it."""
    items = []
    for path in sorted((data / name / "images").iterdir()):
        image = read_image(path)
        if (data / name / "labels").is_dir():
            labels = read_labels(data / name / "labels" / f"{path.stem}.png")[0]
        else:
            mask = read_mask(data / name / "masks" / f"{path.stem}.png", rule="half_range").mask
            labels = np.asarray(cv2.connectedComponents(mask, connectivity=4)[1], np.int32)
        top, left = (max(0, (length - CROP_PX) // 2) if len(set(labels.shape)) == 1 else 0 for length in labels.shape)
        height, width = (CROP_PX, CROP_PX) if len(set(labels.shape)) == 1 else labels.shape
        window = np.s_[top : top + height, left : left + width]
        items.append(Item(path.stem.rsplit("_", 1)[-1], image[window], labels[window]))
    return items


def make_bench(experiment: Experiment, steps: CompiledSteps, shape: tuple[int, int]) -> Bench:
    """Returns the functions for a set; images of `shape` are predicted whole."""
    options: dict[str, Any] = {"args": experiment.config.model.args, "backend": backend_for(experiment.mesh)}
    apply, _, _ = build_abstract(MODEL, image_size=shape, **options)
    features = make_features(MODEL, image_size=shape, **options)
    start = jax.device_get(experiment.initial_state())
    return Bench(experiment, start, steps, make_predict(apply, experiment.mesh), features)


def train(bench: Bench, state: TrainState, items: Sequence[Item], num_steps: int, rng: Any) -> TrainState:
    """Takes steps on random windows of random images."""
    samples = [Sample(item.image, (item.labels > 0).astype(np.uint8), item.labels) for item in items]
    for step in range(num_steps):
        chosen = rng.integers(0, len(samples), BATCH_SIZE)
        elements = [Element(apply_operations(samples[index], rng, OPERATIONS), int(index)) for index in chosen]
        batch = bench.experiment.place_batch(collate(elements, batch_size=BATCH_SIZE))
        rate = np.float32(LEARNING_RATE * (1 - step / num_steps))
        state, _ = bench.steps.train_step(state, batch, rate)
    return state


def maps_of(bench: Bench, state: TrainState, items: Sequence[Item]) -> list[np.ndarray]:
    """Returns probabilities [h, w, 1] of each image."""
    return [bench.predict(state.averaged_params, state.model_state, item.image[None])[0] for item in items]


def scores(bench: Bench, state: TrainState, items: Sequence[Item]) -> dict[str, float]:
    """Returns mean Dice and PQ over images."""
    dice, pq = [], []
    for item, maps in zip(items, maps_of(bench, state, items), strict=True):
        mask, truth = maps[..., 0] >= 0.5, item.labels > 0
        total = mask.sum() + truth.sum()
        dice.append(2 * (mask & truth).sum() / total if total else np.nan)
        labels = label_instances(maps, mask, ("mask",), PostprocessingConfig())
        pq.append(panoptic_quality(join_counts([count_instances(item.labels, labels)]))[0])
    return {"dice": float(np.nanmean(dice)), "pq": float(np.nanmean(pq))}


def suggested(bench: Bench, state: TrainState, pool: Sequence[Item], annotated: Sequence[int]) -> list[int]:
    """Returns the images that the package would suggest."""
    rest = [index for index in range(len(pool)) if index not in set(annotated)]
    bits = np.array([uncertainty(maps) for maps in maps_of(bench, state, [pool[index] for index in rest])])

    def embedded(indices: Sequence[int]) -> np.ndarray:
        weights = state.averaged_params, state.model_state
        return np.array([np.asarray(bench.features(*weights, pool[index].image[None]))[0] for index in indices])

    picks = select(bits, embedded(rest), embedded(annotated), count=PER_ROUND)
    return [rest[pick.candidate] for pick in picks]


def run_seed(bench: Bench, items: Sequence[Item], seed: int) -> dict[str, list[dict[str, float]]]:
    """Returns the scores after each round, by way of choosing."""
    rng = np.random.default_rng([seed, 0])
    sources = sorted({item.source for item in items})
    shuffled = rng.permutation(sources).tolist()
    test = [item for item in items if item.source in shuffled[:TEST]]
    pool = [item for item in items if item.source in shuffled[TEST : TEST + POOL]]
    order = rng.permutation(len(pool)).tolist()
    start = jax.tree.map(jnp.array, bench.start)
    begun = train(bench, start, [pool[index] for index in order[:FIRST]], FIRST_STEPS, rng)
    first = {"images": FIRST, **scores(bench, begun, test)}
    curves = {}
    for way in ("random", "suggest"):
        state, annotated = jax.tree.map(jnp.copy, begun), order[:FIRST]
        curve = [first]
        way_rng = np.random.default_rng([seed, 1])
        for _ in range(NUM_ROUNDS):
            more = order[len(annotated) :][:PER_ROUND]
            annotated = annotated + (more if way == "random" else suggested(bench, state, pool, annotated))
            state = train(bench, state, [pool[index] for index in annotated], STEPS_PER_ROUND, way_rng)
            curve.append({"images": len(annotated), **scores(bench, state, test)})
            print(way, seed, curve[-1], flush=True)
        curves[way] = curve
    return curves


def table(results: dict[str, Any], name: str) -> str:
    """Returns a table of means over seeds with the mean paired difference and its standard error."""
    seeds = [results[key] for key in sorted(results) if key.startswith(f"{name} ")]
    lines = [
        f"{name}, {len(seeds)} seeds",
        "| images | score | random | suggest | difference |",
        "|---|---|---|---|---|",
    ]
    for row in range(NUM_ROUNDS + 1):
        for score in ("dice", "pq"):
            random, suggest = (np.array([seed[way][row][score] for seed in seeds]) for way in ("random", "suggest"))
            difference = suggest - random
            error = difference.std(ddof=1) / np.sqrt(len(seeds)) if len(seeds) > 1 else float("nan")
            lines.append(
                f"| {seeds[0]['random'][row]['images']} | {score} | {random.mean():.3f} | {suggest.mean():.3f} | "
                f"{difference.mean():+.3f} ± {error:.3f} |"
            )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the seeds that are not done yet, one of each set in turn, and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--sets", nargs="*", default=list(SETS), choices=SETS)
    options = parser.parse_args(arguments)
    path = make_folder(options.out) / "active_learning.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    todo = [(seed, name) for seed in range(options.seeds) for name in options.sets if f"{name} {seed}" not in results]
    if todo:
        experiment = build_experiment(load_config(Path("pap"), SETTINGS))
        steps = experiment.compile()
        items = {name: read_items(options.data, name) for name in options.sets}
        benches = {name: make_bench(experiment, steps, items[name][0].labels.shape) for name in options.sets}
        for seed, name in todo:
            results[f"{name} {seed}"] = run_seed(benches[name], items[name], seed)
            write_json(path, results)
    for name in options.sets:
        print(table(results, name))


if __name__ == "__main__":
    main()
