"""`eval`, `compare` and `train --seeds` as a user runs them."""

import json
import shutil

import cv2
import numpy as np
import pytest

from cervseg_jax.evaluation.compare import Recipe, compare_recipes
from cervseg_jax.evaluation.subsets import find_subsets, summarize_subsets
from tests.helpers import draw_discs, refused, rows_of, run


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text())


def read_gray(path):
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def test_scores_are_those_of_the_written_masks_in_the_images_own_size(finished):
    config, folder, _ = finished
    code, stdout, stderr = run("eval", folder, "--set", "infer.threshold=0.3")
    assert code == 0, stderr
    results, truth = folder / "eval" / "test", config.parent / "data" / "test" / "masks"
    rows = rows_of(results / "per_image.csv")
    for row in rows:
        mask, probs = (read_gray(results / name / f"{row['stem']}.png") for name in ("masks", "probabilities"))
        actual = read_gray(truth / f"{row['stem']}.png") > 0
        assert mask.shape == actual.shape == (48, 40)
        both = ((mask > 0) & actual).sum()
        assert float(row["dice"]) == pytest.approx(2 * both / ((mask > 0).sum() + actual.sum()), abs=1e-6)
        assert both > 0
        assert np.array_equal(mask > 0, probs / 255 >= 0.3)
        assert float(row["brier"]) == pytest.approx(np.mean((probs / 255 - actual) ** 2), abs=0.003)
    summary = summary_of(results)
    low, high = summary["intervals"]["dice_mean"]
    assert low < summary["dice_mean"] < high
    assert summary["num_trained_on"] == 0
    assert 0 <= summary["tuned"]["threshold"] <= 1
    assert sum(summary["calibration"]["pixels"]) == 5 * 48 * 40
    for name in ("worst.png", "median.png", "best.png", "calibration.png"):
        assert (results / name).is_file()
    assert "threshold" in stdout
    assert "calibration_error" in stdout


def test_images_that_the_run_was_trained_on_are_refused_unless_told(finished, tmp_path):
    config, folder, _ = finished
    draw_discs(tmp_path / "mixed", count=2, seed=40)
    for kind in ("images", "masks"):
        source = config.parent / "data" / "train" / kind / "disc_001.png"
        shutil.copy(source, tmp_path / "mixed" / kind / "renamed.png")
    message = refused(3, "eval", folder, "--data", tmp_path / "mixed")
    assert "1 of 3 images" in message
    assert "renamed.png" in message
    code, _, stderr = run("eval", folder, "--data", tmp_path / "mixed", "--allow-trained")
    assert code == 0
    assert "1 of 3 images are among those" in stderr
    assert summary_of(folder / "eval" / "mixed")["num_trained_on"] == 1
    shutil.copytree(folder, tmp_path / "blind", ignore=shutil.ignore_patterns("eval"))
    known = (folder / "data.csv").read_text().splitlines()
    (tmp_path / "blind" / "data.csv").write_text(known[0] + "\n")
    assert run("eval", tmp_path / "blind", "--data", tmp_path / "mixed")[0] == 0
    message = refused(3, "eval", tmp_path / "blind", "--with", folder, "--data", tmp_path / "mixed")
    assert "1 of 3 images" in message  # one member has seen it
    code, _, stderr = run("eval", folder, "--split", "train")  # named by the user, so told
    assert code == 0
    assert "6 of 6 images" in stderr


def test_a_dataset_needs_only_the_split_that_is_scored(finished, tmp_path):
    _, folder, _ = finished
    draw_discs(tmp_path / "theirs" / "test", count=3, seed=60)
    draw_discs(tmp_path / "theirs" / "test", count=2, seed=61, size=(75, 101))  # instead of the first two
    assert run("eval", folder, "--data", tmp_path / "theirs")[0] == 0
    rows = rows_of(folder / "eval" / "theirs-test" / "per_image.csv")
    names = ("true_positive", "false_positive", "false_negative", "true_negative")
    assert sorted(sum(int(row[name]) for name in names) for row in rows) == [48 * 40, 75 * 101, 75 * 101]
    assert "has no folder valid" in refused(2, "eval", folder, "--data", tmp_path / "theirs", "--split", "valid")


def test_images_without_nuclei_have_no_dice_and_are_counted(finished, tmp_path):
    _, folder, _ = finished
    draw_discs(tmp_path / "some", count=3, seed=41)
    blank = np.full((48, 40, 3), 230, np.uint8)
    cv2.imwrite(str(tmp_path / "some" / "images" / "blank.png"), blank)
    cv2.imwrite(str(tmp_path / "some" / "masks" / "blank.png"), blank[..., 0] * 0)
    settings = ("--set", "infer.threshold=0.999")
    code, stdout, stderr = run("eval", folder, "--data", tmp_path / "some", *settings)
    assert code == 0, stderr
    summary = summary_of(folder / "eval" / "some")
    assert summary["undefined"]["dice"] >= 1
    assert summary["undefined"]["soft_dice"] == 1
    assert f"dice: {summary['undefined']['dice']} of 4 images have no value" in stdout


def test_ways_to_predict_have_folders_of_their_own(finished):
    _, folder, _ = finished
    for arguments, name in (
        (("--tiled", "--set", "infer.tiled.overlap_px=8"), "test-tiled"),
        (("--set", "infer.test_time_augmentation=true"), "test-symmetries"),
        (("--with", folder), "test-with-run"),
    ):
        code, _, stderr = run("eval", folder, *arguments)
        assert code == 0, stderr
        summary = summary_of(folder / "eval" / name)
        assert 0.2 < summary["soft_dice_mean"] < 1
    assert "loss" not in summary  # of an ensemble there is none
    assert len(summary["weights_sha256"]) == 2


def test_seeds_are_trained_scored_and_compared(finished, tmp_path):
    config, folder, _ = finished
    settings = ("--set", f"data.root={config.parent / 'data'}", "--set", "train.epochs=1")
    arguments = ("train", config, "--run-dir", tmp_path / "recipe", "--seeds", 2, *settings)
    code, stdout, stderr = run(*arguments)
    assert code == 0, stderr
    assert "2 seeds: val_loss" in stdout
    losses = [rows_of(tmp_path / "recipe" / f"seed_{seed}" / "metrics.csv")[-1]["val_loss"] for seed in (3, 4)]
    assert losses[0] != losses[1]
    code, stdout, _ = run(*arguments)  # nothing is left to do
    assert code == 0
    assert stdout.count("finished: all 1 epochs are done") == 2
    assert "is the run of a single training" in refused(
        2, "train", config, "--run-dir", folder, "--seeds", 2, *settings
    )
    code, stdout, _ = run("eval", tmp_path / "recipe")
    assert code == 0
    assert "2 seeds, mean and standard deviation" in stdout
    code, stdout, stderr = run("compare", tmp_path / "recipe", folder, "--out", tmp_path / "out")
    assert code == 0, stderr
    comparison = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert [recipe["num_seeds"] for recipe in comparison["recipes"]] == [2, 1]
    assert comparison["num_images"] == 5
    dices = [
        [float(row["dice"]) for row in sorted(rows_of(run_folder / "eval" / "test" / "per_image.csv"), key=stem_of)]
        for run_folder in (tmp_path / "recipe" / "seed_3", tmp_path / "recipe" / "seed_4", folder)
    ]
    expected = np.mean(dices[2]) - np.mean(dices[:2])
    difference = comparison["comparisons"][0]["scores"]["dice"]["difference"]
    assert difference["mean"] == pytest.approx(expected, abs=1e-5)
    assert (tmp_path / "out" / "comparison.png").is_file()
    assert "run - recipe" in stdout
    assert "at least two runs" in refused(2, "compare", folder)
    assert "choose one of seed_3, seed_4" in refused(4, "report", tmp_path / "recipe")


def stem_of(row):
    return row["stem"]


def recipe_of(name, values, groups):
    images = [f"sha{number}" for number in range(len(values))]
    scores = {"dice": {image: [value] for image, value in zip(images, values, strict=True)}}
    return Recipe(name, 1, dict(zip(images, groups, strict=True)), scores)


def test_verdicts_in_words():
    rng = np.random.default_rng(0)
    base, groups = rng.uniform(0.6, 0.9, 30), [str(number) for number in range(30)]
    runs = [recipe_of("a", base, groups), recipe_of("b", base + rng.uniform(0.01, 0.05, 30), groups)]
    runs += [recipe_of("c", base + rng.normal(0, 0.02, 30), groups), recipe_of("d", base - 0.1, groups)]
    verdicts = [pair["verdict"] for pair in compare_recipes(runs)["comparisons"]]
    assert verdicts[0].startswith("b is better than a: dice +0.0")
    assert verdicts[1].startswith("no difference between c and a can be told")
    assert verdicts[2].startswith("d is worse than a: dice -0.1000")


def test_only_images_in_common_count(finished):
    groups = ["g"] * 4
    short = recipe_of("b", [0.5, 0.6], groups[:2])
    comparison = compare_recipes([recipe_of("a", [0.5, 0.6, 0.1, 0.1], groups), short])
    assert (comparison["num_images"], comparison["num_left_out"]) == (2, 2)
    assert comparison["comparisons"][0]["scores"]["dice"]["difference"]["mean"] == 0


def test_kinds_of_images_come_from_the_manifest_and_from_measures():
    metadata = [
        {"stem": str(n), "split": "test", "subset": "difficult" if n < 4 else "normal", "stain": ""} for n in range(9)
    ]
    metadata[0]["stain"] = "H&E"
    subsets = find_subsets(metadata, {"nuclei": np.arange(9.0), "constant": np.ones(9)})
    assert [(subset.kind, subset.value, subset.rows.sum()) for subset in subsets] == [
        ("subset", "difficult", 4),
        ("subset", "normal", 5),
        ("nuclei", "at most 2.67", 3),
        ("nuclei", "2.67 to 5.33", 3),
        ("nuclei", "more than 5.33", 3),
    ]
    rows = summarize_subsets(subsets, {"dice": np.linspace(0, 0.8, 9)}, [str(n) for n in range(9)])
    assert rows[0]["dice"]["mean"] == pytest.approx(0.15)
    assert rows[0]["num_images"] == 4
