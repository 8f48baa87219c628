"""Measures whole outlines of overlapping nuclei, beside nuclei that are parted, by the degree of their overlap.

    python scripts/benchmark_overlaps.py DATA OUT

DATA holds `bttfa_lbc` and `dsb2018_stained`, see `train_pretrained.py`. The built-in weights `pap`, from which the
recipe `overlaps` starts, decide which images are trained on: those that they have not seen are held out. Pairs of known
overlap are made of them by laying separate nuclei onto others; drawn clusters have their full truth from the start.

Compared are the whole outlines of the trained network, its own label map as a watershed parts it, and that of `pap`.
OUT receives `overlaps.csv`, `summary.json` and pictures. A call that was interrupted goes on.
"""

import argparse
import dataclasses
import itertools
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from train_pretrained import source_images

import cervseg_jax
from cervseg_jax.annotations.outlines import trace
from cervseg_jax.curation.dataset_folder import write_scenes
from cervseg_jax.data.covered_files import save_covered
from cervseg_jax.data.decode import read_image
from cervseg_jax.data.label_files import read_labels
from cervseg_jax.data.overlap import is_separate, lay_down, overlap, place_on, take_copy
from cervseg_jax.data.pairs import Pair, find_pairs
from cervseg_jax.data.samples import Sample, read_instances, whole_truth
from cervseg_jax.extents import Extent, extents_of, layers_of, shared_pixels
from cervseg_jax.files import make_folder, write_json, write_labels, write_png
from cervseg_jax.metrics.bootstrap import Interval, bootstrap_sums
from cervseg_jax.metrics.instance import IOU_THRESHOLDS, InstanceCounts
from cervseg_jax.metrics.whole import count_by_degree, count_whole
from cervseg_jax.pretrained_weights import FOLDER
from cervseg_jax.schema import DataConfig
from cervseg_jax.segmentation.result import Result
from cervseg_jax.tables import read_csv

DEGREES = {"touching": (0.0, 0.0), "0-10": (0.02, 0.1), "10-25": (0.1, 0.25), "25-50": (0.25, 0.5), "50+": (0.5, 0.8)}
"""Degrees of overlap of the pairs that are made, as shares of the smaller nucleus."""
PAIRS_PER_IMAGE = 6
DRAWN = {"train": (60, 31), "valid": (6, 32), "test": (24, 33)}
"""Number and seed of drawn images by split."""
DRAWN_SIZE = (384, 384)
SIDES_PX = {"valid": 256, "test": 320}
"""Side of the middle that is taken of images of 512 pixels, to save time; validation follows each epoch."""
NUM_PICTURES = 3
"""Pictures by test set."""


def split_of_pap() -> dict[str, str]:
    """Returns the split of the images that the built-in weights have seen, by stem; the others are held out."""
    return {row["stem"]: row["split"] for row in read_csv(FOLDER / "pap" / "data.csv", columns=("split", "stem"))}


def write_sample(folder: Path, stem: str, sample: Sample) -> None:
    """Writes an image with its truth into the folder of a split."""
    for name in ("images", "masks", "instances"):
        make_folder(folder / name)
    write_png(folder / "images" / f"{stem}.png", sample.image)
    write_png(folder / "masks" / f"{stem}.png", (sample.mask > 0).astype(np.uint8) * 255)
    write_labels(folder / "instances", stem, np.asarray(sample.instances))
    save_covered(folder, stem, sample.covered)


def middle_of(sample: Sample, side: int) -> Sample:
    """Cuts the middle out of an image."""
    height, width = sample.mask.shape
    top, left = max(0, (height - side) // 2), max(0, (width - side) // 2)
    window = np.s_[top : top + side, left : left + side]
    assert sample.instances is not None
    return Sample(sample.image[window].copy(), sample.mask[window], sample.instances[window])


def with_pairs(sample: Sample, degree: tuple[float, float], rng: np.random.Generator) -> tuple[Sample, int]:
    """Lays copies of separate nuclei onto other separate ones, each of which is used once.

    Returns:
      The sample, and the number of pairs that were made.
    """
    assert sample.instances is not None
    extents = extents_of(sample.instances, sample.covered)
    separate = [label for label, extent in extents.items() if is_separate(label, extent, sample.instances)]
    targets = [separate[index] for index in rng.permutation(len(separate))]
    image, added, count = sample.image.copy(), dict(extents), 0
    for target in targets:
        if count == PAIRS_PER_IMAGE or len(separate) < 2:
            break
        label = separate[int(rng.integers(len(separate)))]
        copy = None if label == target else take_copy(sample.image, sample.instances, extents[label], rng)
        placed = copy and place_on(copy, extents[target], rng.uniform(*degree), shape=sample.mask.shape, rng=rng)
        if placed is None or _meets_others(placed.extent, target, added):
            continue
        lay_down(image, placed)
        added[max(added) + 1] = placed.extent
        count += 1
    labels, covered = layers_of(added, shape=sample.mask.shape)
    return Sample(image, (labels > 0).astype(np.uint8), labels, covered), count


def _meets_others(extent: Extent, target: int, extents: dict[int, Extent]) -> bool:
    """Whether a nucleus would come closer than two pixels to another one than its target."""
    padded = np.pad(extent.inside, 2).astype(np.uint8)
    near = Extent(extent.top - 2, extent.left - 2, cv2.dilate(padded, np.ones((5, 5))) > 0)
    return any(shared_pixels(near, other) for label, other in extents.items() if label != target)


def make_data(data: Path, out: Path) -> Path:
    """Makes the dataset: train and valid, and one test split per degree of overlap beside the drawn clusters."""
    folder = out / "dataset"
    if (folder / "complete").exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    splits = split_of_pap()
    for index, (stem, path, labels) in enumerate(source_images(data)):
        split = splits.get(stem, "test")
        sample = Sample(read_image(path), (labels > 0).astype(np.uint8), labels)
        rng = np.random.default_rng([7, index])
        if split in SIDES_PX:
            sample = middle_of(sample, SIDES_PX[split])
        if split == "valid":
            sample = overlap(sample, rng, max_copies=16, degree=(0.0, 0.75))
        write_sample(folder / split, stem, sample)
        if split == "test":
            for name, degree in DEGREES.items():
                pairs, count = with_pairs(sample, degree, rng)
                if count:
                    write_sample(folder / f"pairs_{name}", stem, pairs)
    for split, (count, seed) in DRAWN.items():
        drawn = out / f"drawn_{split}"
        shutil.rmtree(drawn, ignore_errors=True)
        write_scenes(drawn, num_images=count, seed=seed, size=DRAWN_SIZE)
        make_masks(drawn)
        target = folder / ("drawn" if split == "test" else split)
        for name in ("images", "masks", "instances", "covered"):
            make_folder(target / name)
            for path in sorted((drawn / name).iterdir()):
                shutil.copyfile(path, target / name / path.name)
    (folder / "complete").touch()
    return folder


def make_masks(folder: Path) -> None:
    """Writes the masks of label maps."""
    make_folder(folder / "masks")
    for path in sorted((folder / "instances").iterdir()):
        labels, _ = read_labels(path)
        write_png(folder / "masks" / path.name, ((labels > 0) * 255).astype(np.uint8))


def run_command(*arguments: object) -> None:
    """Runs a `cervseg-jax` command in a process of its own."""
    code = "from cervseg_jax.cli import main; main()"
    subprocess.run([sys.executable, "-c", code, *map(str, arguments)], check=True)


class Measured(NamedTuple):
    """Counts of one image by method and degree of overlap."""

    test_set: str
    stem: str
    counts: dict[str, dict[str, InstanceCounts]]
    """By method, then by degree, "all" or "label map"."""


def predicted(run: str | Path, pairs: Sequence[Pair]) -> Iterator[Result]:
    """Yields the result of each image, scaled by the median diameter of its annotated nuclei."""
    segmenter = cervseg_jax.load(run)
    for pair in pairs:
        image = read_image(pair.image_path)
        extents = whole_truth(pair, image.shape[:2]).values()
        size = float(np.median([2 * np.sqrt(extent.area / np.pi) for extent in extents]))
        (found,) = dataclasses.replace(segmenter, nucleus_px=size).predict([(None, image)])
        yield found[1]


def measure_images(test_set: str, pairs: Sequence[Pair], run: Path, pictures: Path) -> list[Measured]:
    """Predicts and scores the images of one test set."""
    measured = []
    for index, (pair, own, base) in enumerate(zip(pairs, predicted(run, pairs), predicted("pap", pairs), strict=True)):
        truth = list(whole_truth(pair, own.maps.shape[:2]).values())
        parted = Result(own.image, own.maps, heads=own.heads, postprocessing=own.postprocessing)
        methods = {"whole": own.extents, "parted": parted.extents, "pap": base.extents}
        seen = list(extents_of(read_instances(pair, own.maps.shape[:2])).values())
        maps = {"whole": own.labels, "parted": parted.labels, "pap": base.labels}
        counts = {
            name: {
                "all": count_whole(truth, found),
                "label map": count_whole(seen, list(extents_of(maps[name]).values())),
                **count_by_degree(truth, found),
            }
            for name, found in methods.items()
        }
        measured.append(Measured(test_set, pair.stem, counts))
        if index < NUM_PICTURES:
            draw(pictures / f"{test_set}_{pair.stem}.png", own, truth, parted)
    return measured


def draw(path: Path, result: Result, truth: Sequence[Extent], parted: Result) -> None:
    """Draws the image, the true outlines, whole outlines and parted ones side by side, at three times the size."""
    image = np.asarray(result.image[0 : result.maps.shape[0], 0 : result.maps.shape[1]])
    large = np.repeat(np.repeat(image, 3, axis=0), 3, axis=1)
    panels = [large]
    for extents, color in ((truth, (255, 255, 0)), (result.extents, (0, 255, 0)), (parted.extents, (0, 255, 255))):
        panel = large.copy()
        for extent in extents:
            rings = trace(extent.inside, top=extent.top, left=extent.left)
            cv2.polylines(panel, [np.rint(3 * ring).astype(np.int32) for ring in rings], True, color)
        panels.append(panel)
    write_png(path, np.concatenate(panels, axis=1))


def table_of(measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """Returns F1 by test set, degree, IoU and method, and how far it is above parting, with intervals."""
    rows = []
    sets = {"all pairs": [m for m in measured if m.test_set.startswith("pairs")]}
    for item in measured:
        sets.setdefault(item.test_set, []).append(item)
    for test_set, items in sets.items():
        groups = [item.stem for item in items]
        for degree, iou in itertools.product(items[0].counts["whole"], (0.5, 0.7)):
            sums = {name: _sums([item.counts[name][degree] for item in items], iou) for name in items[0].counts}
            num_true = int(sums["whole"][:, 2].sum())
            if not num_true:
                continue
            row: dict[str, Any] = {"set": test_set, "degree": degree, "iou": iou, "num_true": num_true}
            for name, values in sums.items():
                row[f"f1_{name}"] = bootstrap_sums(_f1, values, groups)
            for base in ("parted", "pap"):
                both = np.concatenate([sums["whole"], sums[base]], axis=1)
                row[f"whole_above_{base}"] = bootstrap_sums(lambda s: _f1(s[..., :3]) - _f1(s[..., 3:]), both, groups)
            rows.append(row)
    return rows


def _sums(counts: Sequence[InstanceCounts], iou: float) -> np.ndarray:
    """Twice the matches, true and predicted nuclei together, and true nuclei of each image."""
    column = IOU_THRESHOLDS.index(iou)
    return np.array(
        [[2 * c.matched[0, column], c.num_truth[0] + c.num_predicted[0], c.num_truth[0]] for c in counts], np.float64
    )


def _f1(sums: np.ndarray) -> np.ndarray:
    return sums[..., 0] / np.maximum(sums[..., 1], 1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains, predicts and scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--max-images", type=int, default=100, help="of each test set, taken evenly")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    options = parser.parse_args(arguments)
    out = options.out.absolute()
    dataset, run = make_data(options.data, out), out / "run"
    overrides = [item for setting in options.set for item in ("--set", setting)]
    run_command("train", "overlaps", "--run-dir", run, "--set", f"data.root={dataset}", *overrides)
    pictures, measured = make_folder(out / "pictures"), []
    for folder in sorted(path for path in dataset.iterdir() if path.is_dir() and path.name not in ("train", "valid")):
        data = DataConfig(root=folder)
        every = find_pairs(data, whole=True)[0]["test"]
        pairs = every[:: -(-len(every) // options.max_images)]
        measured += measure_images(folder.name, pairs, run, pictures)
    rows = table_of(measured)
    write_json(out / "summary.json", {"rows": [_plain(row) for row in rows]})
    for row in rows:
        scores = (f"{name} {row[name].mean:.3f} [{row[name].low:.3f}, {row[name].high:.3f}]" for name in list(row)[4:])
        print(f"{row['set']:<16}{row['degree']:<12}{row['iou']:<5}{row['num_true']:>5}  " + "  ".join(scores))


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value._asdict() if isinstance(value, Interval) else value for name, value in row.items()}


if __name__ == "__main__":
    main()
