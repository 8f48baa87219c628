"""Measures whole outlines of overlapping nuclei, beside nuclei that are parted, by the degree of their overlap.

    python scripts/benchmark_overlaps.py DATA OUT

DATA holds `bttfa_lbc` and `dsb2018_stained`, see `train_pretrained.py`. The built-in weights `pap`, from which the
recipe `overlaps` starts, decide which images are trained on: those that they have not seen are held out. Pairs of known
overlap are made of them by laying separate nuclei onto others; drawn clusters have their full truth from the start.

Compared are the whole outlines of the trained network, its own label map as a watershed parts it, and that of `pap`.
OUT receives `overlaps.csv`, `summary.json` and pictures. A call that was interrupted goes on.
"""

import argparse
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from train_pretrained import source_images

from cervseg_jax.curation.dataset_folder import write_scenes
from cervseg_jax.data.covered_files import save_covered
from cervseg_jax.data.decode import read_image
from cervseg_jax.data.overlap import is_separate, lay_down, overlap, place_on, take_copy
from cervseg_jax.data.samples import Sample
from cervseg_jax.extents import Extent, extents_of, layers_of, shared_pixels
from cervseg_jax.files import make_folder, write_labels, write_png
from cervseg_jax.pretrained_weights import FOLDER
from cervseg_jax.tables import read_csv

DEGREES = {"touching": (0.0, 0.0), "0-10": (0.02, 0.1), "10-25": (0.1, 0.25), "25-50": (0.25, 0.5), "50+": (0.5, 0.8)}
"""Degrees of overlap of the pairs that are made, as shares of the smaller nucleus."""
PAIRS_PER_IMAGE = 6
DRAWN = {"train": (60, 31), "valid": (6, 32), "test": (24, 33)}
"""Number and seed of drawn images by split."""
DRAWN_SIZE = (384, 384)


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
        labels = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
        write_png(folder / "masks" / path.name, ((labels > 0) * 255).astype(np.uint8))


def run_command(*arguments: object) -> None:
    """Runs a `cervseg-jax` command in a process of its own."""
    code = "from cervseg_jax.cli import main; main()"
    subprocess.run([sys.executable, "-c", code, *map(str, arguments)], check=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains, predicts and scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    options = parser.parse_args(arguments)
    out = options.out.absolute()
    dataset = make_data(options.data, out)
    overrides = [item for setting in options.set for item in ("--set", setting)]
    run_command("train", "overlaps", "--run-dir", out / "run", "--set", f"data.root={dataset}", *overrides)


if __name__ == "__main__":
    main()
