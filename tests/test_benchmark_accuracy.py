"""The table of `scripts/benchmark_accuracy.py`: splits, cells that are computed once, means and differences."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest

from cervseg_jax.config import load_config
from tests.test_scripts import load_script


@pytest.fixture(scope="module")
def table():
    return load_script("benchmark_accuracy")


@pytest.fixture(scope="module")
def trainings(table):
    return load_script("accuracy_trainings")


@pytest.fixture(scope="module")
def items(trainings):
    return [trainings.Item(Path(f"{index}.png"), Path(), False, f"source{index // 2}") for index in range(30)]


def options(out, **changed):
    return argparse.Namespace(**({"out": out, "set": [], "images": None} | changed))


def scores(values, first=0):
    return {
        "images": [
            {
                "set": "s",
                "stem": str(first + index),
                "source": str(index // 2),
                "dice": value,
                "aji": 0.5,
                "pq": 0.4 if index else float("nan"),
            }
            for index, value in enumerate(values)
        ]
    }


def test_few_images_are_nested_and_folds_hold_each_source_out_once(trainings, items):
    few, more = (trainings.few_sources(items, count, seed=3) for count in (4, 8))
    assert len(few) == 4 and len(more) == 8 and few < more
    assert few != trainings.few_sources(items, 4, seed=4)
    held_out = [trainings.held_out_sources(items, fold, seed=0) for fold in range(3)]
    assert sorted(name for fold in held_out for name in fold) == sorted({item.source for item in items})


def test_a_finished_cell_is_not_computed_again_and_other_settings_are_refused(table, tmp_path, capsys):
    calls = []

    def compute(folder):
        calls.append(folder)
        return scores([0.5, 0.7])

    cell = table.Cell("few", "8 images of s from pap", "8_pap_0", "0", compute)
    for _ in range(2):
        table.run_cell(cell, options(tmp_path))
    assert calls == [tmp_path / "few" / "8_pap_0"]
    assert "dice 0.600" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="give another OUT"):
        table.run_cell(cell, options(tmp_path, set=["train.epochs=1"]))


def test_means_and_differences_are_those_of_the_same_images_of_a_split(table, tmp_path):
    rng = np.random.default_rng(0)
    pap, random = rng.uniform(0.5, 1, (2, 2, 6))
    for split in range(2):
        for start, values in (("pap", pap[split]), ("random", random[split, :4])):
            found = scores(values, first=10 * split)
            cell = table.Cell(
                "few", f"4 images of s from {start}", f"4_{start}_{split}", str(split), lambda _, found=found: found
            )
            table.run_cell(cell, options(tmp_path))
    table.write_table(tmp_path)
    rows = {row["row"]: row for row in json.loads((tmp_path / "accuracy.json").read_text())["rows"]}
    dice = rows["4 images of s from pap"]["dice"]
    assert dice["mean"] == pytest.approx(pap.mean()) and dice["low"] < dice["mean"] < dice["high"]
    assert dice["means"] == pytest.approx(pap.mean(axis=1))
    assert rows["4 images of s from pap"]["pq"]["mean"] == pytest.approx(0.4)
    lines = (tmp_path / "accuracy.md").read_text().splitlines()
    (compared,) = [line for line in lines if "random - 4 images of s from pap" in line]
    assert f"| {(random[:, :4] - pap[:, :4]).mean():.3f} (" in compared


def test_epochs_that_were_repeated_after_an_interruption_count_once(trainings, tmp_path):
    events = [(1, 60.0), (2, 30.0), (2, 90.0), (3, 60.0)]
    lines = [json.dumps({"event": "epoch", "epoch": epoch, "seconds": seconds}) for epoch, seconds in events]
    (tmp_path / "log.jsonl").write_text("\n".join([json.dumps({"event": "compiled", "seconds": 5.0}), *lines]) + "\n")
    assert trainings.minutes_of(tmp_path) == pytest.approx(3.5)


def test_every_variant_of_the_augmentations_is_a_recipe(trainings):
    known = {operation.name for operation in load_config("pap").augment.operations}
    variants = trainings.augmentation_variants()
    for name, overrides in variants.items():
        config = load_config("pap", overrides)
        names = {operation.name for operation in config.augment.operations}
        left_out = name.removeprefix("without ")
        if left_out in known:
            assert names == known - {left_out}
        assert ("overlap" in names) == (name == "with pasted nuclei")
    assert {"all", "without stain", "without scale", "without jpeg"} <= set(variants)
