"""Scores the built-in weights across laboratories, scales and numbers of training images.

    python scripts/benchmark_accuracy.py DATA OUT [--parts transfer scale floor few] [--repeats 1] [--images N]

DATA holds folders `NAME/images` with `NAME/masks` or `NAME/labels`; see `SETS`. Images that the weights were trained on
are left out, by their hashes. Each part prints its table when it is done and writes `OUT/accuracy.json`:

- transfer: the weights as they are, on every set.
- scale: the same images at half, once and twice their size.
- floor: a classical method, Otsu's threshold of the haematoxylin channel with a watershed (needs scikit-image).
- few: 4, 8 and 12 training images of one set, from random weights, from ImageNet and from `pap`, scored on the rest.

Dice and PQ are means over images with 95 % bootstrap intervals over sources. PQ takes connected components of masks
where a set has no labels, and is then a lower bound for touching nuclei.
"""

import argparse
import hashlib
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

import cervseg_jax
from cervseg_jax.data.decode import read_image, read_mask
from cervseg_jax.data.label_files import read_labels
from cervseg_jax.data.resize import resize_image, resize_mask, scaled_size
from cervseg_jax.files import make_folder, write_json, write_png
from cervseg_jax.metrics.instance import count_instances, join_counts, panoptic_quality
from cervseg_jax.pretrained_weights import FOLDER
from cervseg_jax.tables import read_csv

SETS = ("bttfa_lbc", "dsb2018_stained", "cnseg_nucleus", "cnseg_clustered")
FEW_SET = "cnseg_clustered"
FEW_COUNTS = (4, 8, 12)
STARTS: dict[str, tuple[str, ...]] = {
    "random": ("train.init_from=null", "model.args.encoder_weights=null", "train.learning_rate=1e-3"),
    "ImageNet": ("train.init_from=null", "model.args.encoder_weights=imagenet", "train.learning_rate=1e-3"),
    "pap": (),
}


class Item(NamedTuple):
    """An image with its truth."""

    path: Path
    truth_path: Path
    is_labelled: bool
    """Whether the truth is a label map, and no mask."""
    source: str

    def image(self) -> np.ndarray:
        """Returns uint8 RGB [h, w, 3]."""
        return read_image(self.path)

    def labels(self) -> np.ndarray:
        """Returns the true labels, int32 [h, w]; connected components of a mask."""
        if self.is_labelled:
            return read_labels(self.truth_path)[0]
        mask = read_mask(self.truth_path, rule="half_range").mask
        return np.asarray(cv2.connectedComponents(mask, connectivity=4)[1], np.int32)


class Score(NamedTuple):
    """Scores of one image."""

    source: str
    dice: float
    pq: float


def find_items(data: Path, name: str, *, limit: int | None = None) -> list[Item]:
    """Returns the images of a set that the built-in weights were not trained on, spread evenly where limited."""
    trained = {row["image_sha256"] for row in read_csv(FOLDER / "pap" / "data.csv", columns=("image_sha256",))}
    is_labelled = (data / name / "labels").is_dir()
    items = []
    for path in sorted((data / name / "images").iterdir()):
        if hashlib.sha256(path.read_bytes()).hexdigest() in trained:
            continue
        (truth,) = (data / name / ("labels" if is_labelled else "masks")).glob(f"{path.stem}.*")
        items.append(Item(path, truth, is_labelled, path.stem.rsplit("_", 1)[-1]))
    return items if limit is None else items[:: max(1, len(items) // limit)][:limit]


def score(item: Item, labels: np.ndarray, truth: np.ndarray) -> Score:
    """Compares predicted with true labels of an image."""
    found, real = labels > 0, truth > 0
    total = found.sum() + real.sum()
    dice = 2 * (found & real).sum() / total if total else float("nan")
    pq = float(panoptic_quality(join_counts([count_instances(truth, labels)]))[0])
    return Score(item.source, float(dice), pq)


def summarize(scores: Sequence[Score], *, samples: int = 2000) -> dict[str, Any]:
    """Returns means with 95 % bootstrap intervals over sources."""
    rng = np.random.default_rng(0)
    sources = sorted({entry.source for entry in scores})
    by_source = [[entry for entry in scores if entry.source == source] for source in sources]
    summary: dict[str, Any] = {"images": len(scores), "sources": len(sources)}
    for name in ("dice", "pq"):
        values = [np.array([getattr(entry, name) for entry in group]) for group in by_source]
        chosen = rng.integers(0, len(values), (samples, len(values)))
        means = [np.nanmean(np.concatenate([values[index] for index in row])) for row in chosen]
        low, high = np.percentile(means, (2.5, 97.5))
        summary[name] = {
            "mean": float(np.nanmean(np.concatenate(values))),
            "low": float(low),
            "high": float(high),
        }
    return summary


def rescaled(item: Item, factor: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns image and true labels at another size."""
    image, labels = item.image(), item.labels()
    if factor == 1:
        return image, labels
    size = scaled_size(labels.shape, factor)
    return resize_image(image, size), resize_mask(labels, size)


def classical(image: np.ndarray) -> np.ndarray:
    """Returns labels by Otsu's threshold of haematoxylin and a watershed of the distance transform."""
    from skimage import color, feature, filters, measure, morphology, segmentation

    stain = filters.gaussian(color.rgb2hed(image)[..., 0], 1.0)
    mask = morphology.remove_small_objects(stain > filters.threshold_otsu(stain), max_size=29)
    distance = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    peaks = feature.peak_local_max(distance, min_distance=4, labels=measure.label(mask))
    markers = np.zeros(mask.shape, np.int32)
    markers[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    return np.asarray(segmentation.watershed(-distance, markers, mask=mask), np.int32)


def overlay(path: Path, image: np.ndarray, labels: np.ndarray, truth: np.ndarray) -> None:
    """Writes the image with outlines of the truth (green) and of the prediction (magenta)."""
    from cervseg_jax.plots import PREDICTION_COLOR, TRUTH_COLOR, draw_instance_outlines

    picture = draw_instance_outlines(image, truth, color=TRUTH_COLOR)
    write_png(path, draw_instance_outlines(picture, labels, color=PREDICTION_COLOR))


def score_set(
    items: Iterable[Item], segment: Callable[[np.ndarray], np.ndarray], *, factor: float = 1.0, pictures: Path | None
) -> dict[str, Any]:
    """Segments and scores images; writes overlays where a folder is given."""
    scores, start = [], time.perf_counter()
    for item in items:
        image, truth = rescaled(item, factor)
        labels = segment(image)
        scores.append(score(item, labels, truth))
        if pictures is not None:
            overlay(make_folder(pictures) / f"{item.path.stem}.png", image, labels, truth)
    return summarize(scores) | {"seconds_per_image": (time.perf_counter() - start) / max(1, len(scores))}


def train_few(items: Sequence[Item], count: int, start: str, folder: Path, *, seed: int) -> dict[str, Any]:
    """Trains with `train --data` on some sources and scores the others."""
    rng = np.random.default_rng(seed)
    sources = sorted({item.source for item in items})
    chosen = set(rng.permutation(sources)[:count].tolist())
    source = folder / "images_for_training"
    for item in items:
        if item.source in chosen:
            kind = "labels" if item.is_labelled else "masks"
            for name, path in (("images", item.path), (kind, item.truth_path)):
                shutil.copyfile(path, make_folder(source / name) / path.name)
    from cervseg_jax.console import Reporter
    from cervseg_jax.training.own_data import planned_recipe

    begun = time.perf_counter()
    recipe = planned_recipe(source, folder / "run", reporter=Reporter(is_silent=True)).path
    # Only weights that know the other heads can do without instance labels.
    heads = () if items[0].is_labelled or start == "pap" else ("model.heads=[mask]", "train.touching_weight=0")
    run = cervseg_jax.train(recipe, [f"train.seed={seed}", *STARTS[start], *heads], run_dir=folder / "run")
    minutes = (time.perf_counter() - begun) / 60
    segmenter = cervseg_jax.load(run)
    rest = [item for item in items if item.source not in chosen]
    scores = score_set(rest, lambda image: segmenter(image).labels, pictures=folder / "overlays")
    return scores | {"minutes": minutes}


def row(name: str, result: dict[str, Any]) -> str:
    """Returns a line of the table."""
    cells = [
        f"{result[key]['mean']:.3f} ({result[key]['low']:.3f}-{result[key]['high']:.3f})" for key in ("dice", "pq")
    ]
    return f"| {name} | {result['images']} of {result['sources']} | {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the chosen parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parts = ("transfer", "scale", "floor", "few")
    parser.add_argument("--parts", nargs="+", default=list(parts), choices=parts)
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--counts", nargs="+", type=int, default=list(FEW_COUNTS))
    parser.add_argument("--starts", nargs="+", default=list(STARTS), choices=list(STARTS))
    parser.add_argument("--repeats", type=int, default=1, help="Splits of the few images.")
    parser.add_argument("--images", type=int, default=None, help="At most so many images of a set.")
    options = parser.parse_args(arguments)
    segmenter = cervseg_jax.load("pap")
    results: dict[str, Any] = {}

    def note(name: str, result: dict[str, Any]) -> None:
        results[name] = result
        print(row(name, result), flush=True)
        write_json(make_folder(options.out) / "accuracy.json", results)

    print("| part | images of sources | Dice | PQ |\n|---|---|---|---|")
    for part in options.parts:
        if part == "few":
            items = find_items(options.data, FEW_SET)
            for seed in range(options.repeats):
                for count in options.counts:
                    for start in options.starts:
                        name = f"few: {count} images of {FEW_SET} from {start}, split {seed}"
                        folder = options.out / "few" / f"{count}_{start}_{seed}"
                        note(name, train_few(items, count, start, folder, seed=seed))
            continue
        for name in options.sets:
            items = find_items(options.data, name, limit=options.images)
            for factor in (0.5, 2.0) if part == "scale" else (1.0,):
                segment = classical if part == "floor" else lambda image: segmenter(image).labels
                title = f"{part}: {name}" + (f" x {factor:g}" if part == "scale" else "")
                note(
                    title, score_set(items, segment, factor=factor, pictures=options.out / part / f"{name}_{factor:g}")
                )


if __name__ == "__main__":
    main()
