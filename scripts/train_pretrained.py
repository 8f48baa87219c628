"""Trains the built-in weights `pap` from freely licensed images, and writes the folder that the package ships.

    python scripts/train_pretrained.py DATA OUT [--set train.epochs=11 ...]

DATA holds `bttfa_lbc/{images,masks}` (Zhang 2019, Mendeley Data jks43dkjj7, CC BY 4.0) and
`dsb2018_stained/{images,labels}` (2018 Data Science Bowl, Broad Institute, CC0). Drawn clusters are added to them, and
a fifth of the images of each kind is held out. Drawn smears are added to the training images. The same command
continues an interrupted call. About an hour on two CPU cores.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import jax.numpy as jnp
import numpy as np
import yaml

import cervseg_jax
from cervseg_jax.config import load_config
from cervseg_jax.console import Reporter
from cervseg_jax.curation.dataset import make_dataset
from cervseg_jax.curation.dataset_folder import write_scenes
from cervseg_jax.curation.recipe import Recipe
from cervseg_jax.data.decode import read_mask
from cervseg_jax.data.label_files import read_labels
from cervseg_jax.data.pairs import find_pairs
from cervseg_jax.files import make_folder, sha256_of, write_labels
from cervseg_jax.runs.folder import load_run_config
from cervseg_jax.runs.half_precision import save_half_precision
from cervseg_jax.runs.weights import CONFIDENCE_FILE, read_arrays, read_contract, save_weights
from cervseg_jax.schema import Config
from cervseg_jax.segmentation.tuning import tune_run
from cervseg_jax.tables import csv_text, read_csv

NUM_DRAWN, DRAWN_SEED, DRAWN_SIZE = 80, 11, (384, 384)
NUM_SMEARS, SMEAR_SEED = 160, 21
MIN_PROBABILITY = 0.4
"""Probability from which nuclei are kept: half of the F1 that is reached, which maximizes F1 (Lipton et al. 2014,
arXiv:1402.1892)."""
RECIPE = "pap"


def source_images(data: Path) -> Iterator[tuple[str, Path, np.ndarray]]:
    """Yields the stem of each image in the dataset, its file and its instance labels, int32 [h, w].

    The masks of BTTFA are semantic; most nuclei are apart, and connected components are taken for nuclei.
    """
    for path in sorted((data / "bttfa_lbc" / "images").iterdir()):
        mask = read_mask(data / "bttfa_lbc" / "masks" / f"{path.stem}.png", rule="half_range").mask
        labels = cv2.connectedComponents(mask, connectivity=4)[1]
        yield f"bttfa_{path.stem}", path, np.asarray(labels, np.int32)
    for path in sorted((data / "dsb2018_stained" / "images").iterdir()):
        labels, _ = read_labels(data / "dsb2018_stained" / "labels" / f"{path.stem}.png")
        yield f"dsb_{path.stem}", path, labels


def collect_source(data: Path, out: Path) -> Path:
    """Gathers all images with label maps in one folder that `prepare` reads; stems begin with their origin."""
    folder = out / "source"
    if (folder / "complete").exists():
        return folder
    make_folder(folder / "images")
    make_folder(folder / "labels")
    for stem, path, labels in source_images(data):
        shutil.copyfile(path, folder / "images" / f"{stem}{path.suffix}")
        write_labels(folder / "labels", stem, labels)
    drawn = out / "drawn"
    shutil.rmtree(drawn, ignore_errors=True)
    write_scenes(drawn, num_images=NUM_DRAWN, seed=DRAWN_SEED, size=DRAWN_SIZE)
    for path in sorted((drawn / "images").iterdir()):
        shutil.copyfile(path, folder / "images" / path.name)
        shutil.copyfile(drawn / "instances" / path.name, folder / "labels" / path.name)
    (folder / "complete").touch()
    return folder


def make_data(data: Path, out: Path, reporter: Reporter) -> tuple[Path, Path]:
    """Makes the dataset of all images, and a copy that has drawn smears in its training split besides."""
    source, dataset, with_smears = collect_source(data, out), out / "dataset", out / "dataset_with_smears"
    if not (dataset / "overview.html").exists():
        recipe = Recipe(annotations="labels", valid=0.1, test=0.2, seed=1)
        make_dataset(source, dataset, recipe, reporter=reporter)
    if not (out / "smears" / "added").exists():
        for folder in (out / "smears", with_smears):
            shutil.rmtree(folder, ignore_errors=True)
        write_scenes(out / "smears", num_images=NUM_SMEARS, seed=SMEAR_SEED, size=DRAWN_SIZE, kind="smear")
        shutil.copytree(dataset, with_smears)
        run_command("prepare", out / "smears", "--add-to", with_smears, "--annotations", "instances")
        (out / "smears" / "added").touch()
    return dataset, with_smears


def run_command(*arguments: object) -> None:
    """Runs a `cervseg-jax` command in a process of its own."""
    code = "from cervseg_jax.cli import main; main()"
    subprocess.run([sys.executable, "-c", code, *map(str, arguments)], check=True)


def later_stage(before: Path, *, epochs: int) -> list[str]:
    """Returns the settings of a training that goes on from another and also sees much smaller images.

    Otherwise whole cells are taken for nuclei where the scale of an image is not known.
    """
    operations = [{"name": "shrink", "probability": 0.3}]
    operations += [entry.model_dump() for entry in load_config(RECIPE).augment.operations]
    return [
        f"train.init_from={before}",
        "model.args={}",
        f"augment.operations={json.dumps(operations)}",
        f"train.epochs={epochs}",
        "train.learning_rate=5e-4",
    ]


def average(runs: Sequence[Path], out: Path, config: Config, reporter: Reporter) -> None:
    """Writes a run with the mean weights of others, and tunes its post-processing and confidence.

    Weights before and after adapting to other images, averaged, carry over better than either (Wortsman et al. 2022,
    arXiv:2109.01903).

    Args:
      runs: runs of one network; the other files are those of the last one.
      out: the new run.
      config: its config.
      reporter: for messages.
    """
    if (out / "best" / CONFIDENCE_FILE).exists():
        return
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(runs[-1], out)
    every = [read_arrays(run / "best", read_contract(run / "best")) for run in runs]
    mean = {name: jnp.asarray(np.mean([arrays[name] for arrays in every], axis=0)) for name in every[0]}
    last = read_contract(out / "best")
    save_weights(out / "best", config, mean, {}, epoch=last.epoch, step=last.step, val_loss=None, scale=last.scale)
    tune_run(out, config, find_pairs(config.data)[0]["valid"], reporter=reporter)


def pack(run: Path, folder: Path) -> None:
    """Writes the run as it is shipped: weights in half precision, the config, and the hashes of its images."""
    make_folder(folder)
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    # The folders of this machine mean nothing elsewhere.
    config["data"] |= {"root": "not_shipped", "origin": "the training images are not shipped; give yours with --data"}
    config["train"]["init_from"] = None
    config["infer"]["min_probability"] = MIN_PROBABILITY
    text = yaml.safe_dump(config, sort_keys=False, default_flow_style=None, width=120)
    (folder / "config.yaml").write_text(text, encoding="utf-8")
    save_half_precision(run / "best", folder / "best")
    # The hashes are those of the published files, so that `eval` refuses to score them.
    paths = [path for name in ("source", "smears") for path in (run.parent / name / "images").iterdir()]
    originals = {path.stem: sha256_of(path.read_bytes()) for path in paths}
    rows = read_csv(run / "data.csv", columns=("split", "stem"))
    files = [[entry["split"], entry["stem"], originals[entry["stem"]]] for entry in rows if entry["split"] != "test"]
    (folder / "data.csv").write_text(csv_text(["split", "stem", "image_sha256"], files), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains, scores and packs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    options = parser.parse_args(arguments)
    out, reporter = options.out.absolute(), Reporter()
    dataset, with_smears = make_data(options.data, out, reporter)
    first, second, third, run = (out / name for name in ("first", "second", "third", "run"))
    stages: list[tuple[Path, Path, list[str]]] = [
        (first, dataset, []),
        (second, dataset, later_stage(first, epochs=4)),
        (third, with_smears, later_stage(second, epochs=8)),
    ]
    for folder, root, settings in stages:
        overrides = [item for setting in [f"data.root={root}", *settings, *options.set] for item in ("--set", setting)]
        run_command("train", RECIPE, "--run-dir", folder, *overrides)
    average([second, third], run, load_run_config(third), reporter)
    run_command("eval", run)
    pack(run, out / "pap")
    summary = json.loads((run / "eval" / "test" / "summary.json").read_text(encoding="utf-8"))
    reporter.info(f"cervseg-jax {cervseg_jax.__version__}: mean Dice {summary['dice_mean']:.3f}")
    reporter.info(f"weights to ship: {out / 'pap'}")


if __name__ == "__main__":
    main()
