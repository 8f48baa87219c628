"""Compares methods of instance separation: the same network and budget with different heads.

Connected components and the distance within the mask use the same network, which predicts only the mask. Parameters
are tuned on the validation images, scores are computed on the test images. Finished runs are reused.

Run: python scripts/compare_heads.py configs/nuclei_small.yaml OUT --set data.root=DATASET [--seeds 0 1 2]
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cervseg_jax.data.decode import read_image
from cervseg_jax.data.pairs import Pair, find_pairs
from cervseg_jax.data.samples import read_instances
from cervseg_jax.evaluation.nuclei import columns_of, join_nucleus_scores, score_nuclei
from cervseg_jax.files import write_png
from cervseg_jax.metrics.bootstrap import bootstrap_mean
from cervseg_jax.plots import PREDICTION_COLOR, TRUTH_COLOR, draw_instance_outlines, draw_sheet
from cervseg_jax.runs.folder import load_run_config
from cervseg_jax.runs.weights import Network, load_network
from cervseg_jax.schema import Config
from cervseg_jax.segmentation.instances import label_instances
from cervseg_jax.segmentation.postprocess import make_mask
from cervseg_jax.segmentation.predict import make_predictor, predict_images
from cervseg_jax.segmentation.tuning import MIN_SADDLE_DEPTHS, tune


class Method(NamedTuple):
    """A method of instance separation: heads of the network and candidates for the saddle depth."""

    heads: tuple[str, ...]
    min_saddle_depths: tuple[float, ...] = MIN_SADDLE_DEPTHS


METHODS = {
    # The saddle depth is so large that touching basins always merge.
    "connected components": Method(("mask",), (0.999,)),
    "mask, distance within it": Method(("mask",)),
    "mask and boundary": Method(("mask", "boundary")),
    "mask and distance": Method(("mask", "distance")),
    "mask, boundary, distance": Method(("mask", "boundary", "distance")),
    "mask and hover": Method(("mask", "hover")),
}
SHOWN = ("aji", "pq", "f1_50", "split_rate", "merge_rate", "pq_touching", "f1_50_touching", "merge_rate_touching")
NUM_EXAMPLES = 6


def main(arguments: Sequence[str]) -> None:
    """Trains, tunes and scores all methods; prints a table and draws the first test images."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("out", type=Path, help="folder for runs, scores.json and nuclei.png")
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="section.key=value")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--methods", "--ways", nargs="*", default=list(METHODS), choices=METHODS)
    options = parser.parse_args(arguments)
    out: Path = options.out.absolute()
    scores: dict[str, dict[str, list[float]]] = {}
    examples: dict[str, list[np.ndarray]] = {}
    pairs: dict[str, list[Pair]] = {}
    for seed in options.seeds:
        for name in options.methods:
            method = METHODS[name]
            run = _train(
                options.config, out / "runs" / f"{'-'.join(method.heads)}-{seed}", method, seed, options.overrides
            )
            config, network = load_run_config(run, []), load_network(run / "best")
            pairs, _ = find_pairs(config.data)
            postprocessing, _ = tune(
                *_maps_and_truths(config, network, pairs["valid"]),
                network.contract.heads,
                min_saddle_depths=method.min_saddle_depths,
            )
            maps, truths = _maps_and_truths(config, network, pairs["test"])
            masks = [make_mask(image[..., 0], postprocessing.threshold) for image in maps]
            predictions = [
                label_instances(image, mask, network.contract.heads, postprocessing.params)
                for image, mask in zip(maps, masks, strict=True)
            ]
            columns = columns_of(join_nucleus_scores(list(map(score_nuclei, truths, predictions))))
            rows = scores.setdefault(name, {key: [] for key in columns})
            for key, values in columns.items():
                rows[key] += values.tolist()
            examples.setdefault(name, predictions[:NUM_EXAMPLES])
    groups = [pair.group for pair in pairs["test"]] * len(options.seeds)
    print(f"{len(pairs['test'])} test images, seeds {options.seeds}; means with 95 % intervals")
    print("| method | " + " | ".join(SHOWN) + " |\n|" + "---|" * (len(SHOWN) + 1))
    for name, rows in scores.items():
        intervals = [bootstrap_mean(np.array(rows[key]), groups) for key in SHOWN]
        cells = [f"{value.mean:.3f} [{value.low:.3f}, {value.high:.3f}]" for value in intervals]
        print(f"| {name} | " + " | ".join(cells) + " |")
    (out / "scores.json").write_text(json.dumps(scores), encoding="utf-8")
    _draw(out / "nuclei.png", pairs["test"][:NUM_EXAMPLES], examples)


def _train(config: Path, run: Path, method: Method, seed: int, overrides: Sequence[str]) -> Path:
    if not (run / "best" / "postprocessing.json").is_file():
        settings = [*overrides, f"model.heads=[{', '.join(method.heads)}]", f"train.seed={seed}"]
        if method.heads == ("mask",):
            settings.append("train.touching_weight=0")
        options = [word for setting in settings for word in ("--set", setting)]
        program = str(Path(sys.executable).with_name("cervseg-jax"))
        subprocess.run([program, "train", str(config), "--run-dir", str(run), "--quiet", *options], check=True)
    return run


def _maps_and_truths(
    config: Config, network: Network, pairs: Sequence[Pair]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    predictor = make_predictor([network], batch_size=config.infer.batch_size)
    images = [read_image(pair.image_path) for pair in pairs]
    maps = predict_images(predictor, images)
    truths = [read_instances(pair, image.shape[:2]) for pair, image in zip(pairs, images, strict=True)]
    return list(maps), truths


def _draw(path: Path, pairs: Sequence[Pair], predictions: dict[str, list[np.ndarray]]) -> None:
    rows = []
    for index, pair in enumerate(pairs):
        image = read_image(pair.image_path)
        truth = read_instances(pair, image.shape[:2])
        outlined = [
            draw_instance_outlines(image, labels[index], color=PREDICTION_COLOR) for labels in predictions.values()
        ]
        rows.append([image, draw_instance_outlines(image, truth, color=TRUTH_COLOR), *outlined])
    write_png(path, draw_sheet(rows, captions=["image", "truth", *predictions]))


if __name__ == "__main__":
    main(sys.argv[1:])
