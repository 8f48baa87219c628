"""Accuracy in one table: across laboratories, scales and numbers of training images, beside other methods.

    python scripts/benchmark_accuracy.py DATA OUT [--parts transfer scale single floor few folds] [--repeats 1]

DATA holds folders `NAME/images` with `NAME/masks` or `NAME/labels`; see `SETS`. The parts:

- transfer: the built-in weights as they are, on every set, without the images that they were trained on.
- scale: the same images at half and twice their size.
- single: parts of the images around single nuclei, enlarged to 25 to 70 pixels, as files of single cells are.
- floor: a classical method, Otsu's threshold of the haematoxylin channel with a watershed (needs scikit-image).
- few: 4, 8 and 12 training images of each of two sets, from `pap`, ImageNet and random weights, scored on the rest.
- folds: three folds of one set by source, trained from ImageNet at the images' own scale. With `--stardist-python`
  StarDist is trained from scratch on the same folds, for as many CPU minutes as that training took by the clock.
- augmentation: a short training of the recipe `pap` with one augmentation left out or added, scored on laboratories
  that it has not seen. Not among the parts that run by default.

A part, a split or a fold that is finished is not computed again, and a training that was interrupted goes on: give the
same command. OUT receives each one's scores and overlays, and `accuracy.json` and `accuracy.md` with all that is there.

Values are means over images of all trainings of a row, with 95 % bootstrap intervals over sources; beside several
trainings the lowest and highest of their means. Rows with a minus are differences on the same images.
"""

import argparse
import itertools
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from accuracy_images import METRICS, classical, find_items, score_items, single_nuclei
from accuracy_trainings import (
    NUM_FOLDS,
    STARTS,
    augmentation_variants,
    minutes_of,
    stardist_fold,
    train_few,
    train_fold,
    train_variant,
)

import cervseg_jax
from cervseg_jax.errors import CervsegError
from cervseg_jax.files import make_folder, read_json_object, sha256_of, write_json, write_text
from cervseg_jax.metrics.bootstrap import Interval, bootstrap_mean, compare_paired
from cervseg_jax.pretrained_weights import FOLDER

SETS = ("bttfa_lbc", "dsb2018_stained", "cnseg_nucleus", "cnseg_clustered")
FOLDS_SET = "dsb2018_stained"
FEW_SETS = ("cnseg_clustered", "cnseg_nucleus")
UNSEEN_SETS = ("cnseg_nucleus", "cnseg_clustered")
FEW_COUNTS = (4, 8, 12)
PARTS = ("transfer", "scale", "single", "floor", "few", "folds", "augmentation")


class Cell(NamedTuple):
    """What is computed at once: a method on images."""

    part: str
    row: str
    """Row of the table; cells of several splits, folds or seeds share one."""
    name: str
    """Name of its folder."""
    split: str
    """Which images it has trained on; rows are compared on images of one split."""
    compute: Callable[[Path], dict[str, Any]]
    """From the folder to "images", scores by image, and other facts."""


def transfer_cells(options: argparse.Namespace, part: str) -> Iterator[Cell]:
    """Yields the sets, with the built-in weights or the classical method."""
    segmenter = None if part == "floor" else cervseg_jax.load("pap")
    segment = classical if segmenter is None else lambda image: segmenter(image).labels
    for name, factor in itertools.product(options.sets, (0.5, 2.0) if part == "scale" else (1.0,)):
        row = f"{name} x {factor:g}" if part == "scale" else name
        items = find_items(options.data, name, limit=options.images)
        if part == "single":
            items = single_nuclei(items)
        yield Cell(
            part,
            row,
            f"{name}_{factor:g}",
            "all",
            lambda folder, items=items, factor=factor: score_items(items, segment, folder / "overlays", factor=factor),
        )


def few_cells(options: argparse.Namespace, part: str) -> Iterator[Cell]:
    """Yields trainings on few images; all starts of a split before the next split."""
    for seed in range(options.repeats):
        for name in options.few_sets:
            items = find_items(options.data, name)
            for count, start in itertools.product(options.counts, options.starts):
                compute = partial(train_few, items, count, start, seed=seed, overrides=options.set)
                row = f"{count} images of {name} from {start}"
                yield Cell(part, row, f"{name}_{count}_{start}_{seed}", str(seed), compute)


def fold_cells(options: argparse.Namespace, part: str) -> Iterator[Cell]:
    """Yields the folds, each followed by StarDist's."""
    items = find_items(options.data, FOLDS_SET, limit=options.images, with_trained=True)
    for seed, fold in itertools.product(range(options.repeats), options.folds):
        split = f"{fold}_{seed}"
        name = f"own_{split}"
        compute = partial(train_fold, items, fold, seed=seed, overrides=options.set)
        yield Cell(part, f"{FOLDS_SET} cross-validated", name, split, compute)
        if options.stardist_python is not None:

            def peer(folder: Path, fold: int = fold, seed: int = seed, name: str = name) -> dict[str, Any]:
                minutes = options.stardist_minutes or minutes_of(folder.parent / name / "run")
                python = options.stardist_python
                return stardist_fold(items, fold, folder, seed=seed, python=python, minutes=minutes)

            yield Cell(part, f"{FOLDS_SET} cross-validated, StarDist", f"stardist_{split}", split, peer)


def augmentation_cells(options: argparse.Namespace, part: str) -> Iterator[Cell]:
    """Yields short trainings with one augmentation left out."""
    for seed, variant in itertools.product(range(options.repeats), options.variants or augmentation_variants()):
        compute = partial(
            lambda folder, variant, seed: train_variant(
                options.data, variant, folder, seed=seed, sets=UNSEEN_SETS, overrides=options.set
            ),
            variant=variant,
            seed=seed,
        )
        yield Cell(part, variant, f"{variant.replace(' ', '_')}_{seed}", str(seed), compute)


CELLS: dict[str, Callable[[argparse.Namespace, str], Iterator[Cell]]] = {
    "transfer": transfer_cells,
    "scale": transfer_cells,
    "single": transfer_cells,
    "floor": transfer_cells,
    "few": few_cells,
    "folds": fold_cells,
    "augmentation": augmentation_cells,
}


def run_cell(cell: Cell, options: argparse.Namespace) -> None:
    """Computes a cell unless its scores are there.

    Raises:
      SystemExit: if they were computed with other settings.
    """
    folder = options.out / cell.part / cell.name
    path = folder / "scores.json"
    weights = {path.name: sha256_of(path.read_bytes()) for path in sorted((FOLDER / "pap" / "best").iterdir())}
    settings = {"set": list(options.set), "images": options.images, "weights": sha256_of(str(weights).encode())}
    if path.exists():
        known = read_json_object(path)["settings"]
        if known != settings:
            raise SystemExit(f"{path}: was computed with {known}, now {settings}; give another OUT")
        return
    scores = cell.compute(make_folder(folder))
    write_json(path, {"row": cell.row, "split": cell.split, "settings": settings, **scores})
    means = (f"{metric} {np.nanmean([image[metric] for image in scores['images']]):.3f}" for metric in METRICS)
    print(f"{cell.part}: {cell.row} ({cell.name}): {', '.join(means)}", flush=True)


def collect_rows(out: Path) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Returns the finished cells of each row, in the order of the parts; a row of augmentation for each set."""
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for part in PARTS:
        for path in sorted((out / part).glob("*/scores.json")):
            cell = read_json_object(path)
            for name in dict.fromkeys(image["set"] for image in cell["images"]):
                row = f"{name} {cell['row']}" if part == "augmentation" else cell["row"]
                images = [image for image in cell["images"] if image["set"] == name]
                rows.setdefault((part, row), []).append(cell | {"images": images})
    return rows


def values_of(cells: Sequence[dict[str, Any]], metric: str) -> tuple[np.ndarray, list[str]]:
    """Returns the scores of all images of a row and their sources."""
    images = [image for cell in cells for image in cell["images"]]
    return np.array([image[metric] for image in images], float), [image["source"] for image in images]


def base_of(part: str, row: str) -> tuple[str, str] | None:
    """Returns the row that another is compared with."""
    if part == "scale":
        return "transfer", row.rsplit(" x ", 1)[0]
    if part == "few" and not row.endswith("from pap"):
        return part, row.rsplit(" from ", 1)[0] + " from pap"
    if part == "folds" and row.endswith(", StarDist"):
        return part, row.removesuffix(", StarDist")
    name, _, variant = row.partition(" ")
    return (part, f"{name} all") if part == "augmentation" and variant != "all" else None


def difference(cells: Sequence[dict[str, Any]], base: Sequence[dict[str, Any]], metric: str) -> Interval:
    """Returns the mean difference on the images that both rows have scored in the same split, with its interval."""
    known = {(cell["split"], image["stem"]): image[metric] for cell in base for image in cell["images"]}
    pairs = [
        (image[metric], known[cell["split"], image["stem"]], image["source"])
        for cell in cells
        for image in cell["images"]
        if (cell["split"], image["stem"]) in known
    ]
    values = np.array([pair[:2] for pair in pairs], float).reshape(-1, 2)
    return compare_paired(values[:, 0], values[:, 1], [pair[2] for pair in pairs]).difference


def _shown(interval: Interval, means: Sequence[float] = ()) -> str:
    spread = f" [{min(means):.3f}-{max(means):.3f}]" if len(means) > 1 else ""
    return f"{interval.mean:.3f} ({interval.low:.3f} to {interval.high:.3f}){spread}"


def write_table(out: Path) -> None:
    """Writes the table of all finished cells."""
    rows, results = collect_rows(out), []
    lines = [
        "| part | row | images, sources | trainings | Dice | AJI | PQ | minutes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (part, row), cells in rows.items():
        intervals = {metric: bootstrap_mean(*values_of(cells, metric)) for metric in METRICS}
        means = {m: [float(np.nanmean(values_of([cell], m)[0])) for cell in cells] for m in METRICS}
        sources = values_of(cells, "dice")[1]
        minutes = [cell["minutes"] for cell in cells if "minutes" in cell]
        cells_text = " | ".join(_shown(intervals[metric], means[metric]) for metric in METRICS)
        spent = f"{statistics.mean(minutes):.0f}" if minutes else "-"
        count = len(minutes) or "-"
        lines.append(f"| {part} | {row} | {len(sources)}, {len(set(sources))} | {count} | {cells_text} | {spent} |")
        results.append({"part": part, "row": row, **{m: intervals[m]._asdict() | {"means": means[m]} for m in METRICS}})
        base = base_of(part, row)
        if base in rows:
            texts = [_shown(difference(cells, rows[base], metric)) for metric in METRICS]
            lines.append(f"| {part} | {row} - {base[1]} | | | {' | '.join(texts)} | |")
    write_json(out / "accuracy.json", {"rows": results})
    write_text(out / "accuracy.md", "\n".join(lines) + "\n")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--parts", nargs="+", default=PARTS[:-1], choices=PARTS)
    parser.add_argument("--sets", nargs="+", default=SETS)
    parser.add_argument("--few-sets", nargs="+", default=FEW_SETS)
    parser.add_argument("--counts", nargs="+", type=int, default=FEW_COUNTS)
    parser.add_argument("--starts", nargs="+", default=tuple(STARTS), choices=tuple(STARTS))
    parser.add_argument("--folds", nargs="+", type=int, default=tuple(range(NUM_FOLDS)), choices=range(NUM_FOLDS))
    parser.add_argument("--variants", nargs="+", choices=tuple(augmentation_variants()))
    parser.add_argument("--repeats", type=int, default=1, help="Splits of few images, seeds of folds and variants.")
    parser.add_argument("--images", type=int, default=None, help="At most so many images of a set; not for few.")
    parser.add_argument("--stardist-python", type=Path, help="Python of an environment with stardist.")
    parser.add_argument("--stardist-minutes", type=float, help="CPU time instead of that of the training beside it.")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="For all trainings.")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the chosen parts."""
    options = parse(arguments)
    try:
        for part in options.parts:
            for cell in CELLS[part](options, part):
                run_cell(cell, options)
                write_table(options.out)
    except CervsegError as error:
        print(error, file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    print((options.out / "accuracy.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
