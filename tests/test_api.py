"""The Python API on a finished run: lazy, quiet, and with the results and messages of the commands."""

import subprocess
import sys

import cv2
import numpy as np
import pytest

import cervseg_jax
from tests.helpers import rows_of, run


def test_importing_the_package_imports_nothing_heavy():
    code = (
        "import sys, cervseg_jax; "
        "heavy = {'jax', 'keras', 'cv2', 'numpy', 'matplotlib', 'scipy', 'pydantic'} & set(sys.modules); "
        "assert not heavy, heavy; assert {'load', 'train', 'evaluate', 'Segmenter'} <= set(dir(cervseg_jax)); "
        "cervseg_jax.errors.ConfigError"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    with pytest.raises(AttributeError, match="has no attribute 'lode'"):
        _ = cervseg_jax.lode


def test_python_and_the_command_give_the_same_pixels(finished, tmp_path, capfd):
    config, folder, _ = finished
    images = sorted((config.parent / "data" / "test" / "images").iterdir())
    arguments = ("--set", "infer.threshold=0.3", "--set", "infer.postprocessing={min_area_px: 5}", "--output", "all")
    code, _, stderr = run("infer", folder, "--images", images[0].parent, "--out", tmp_path / "out", *arguments)
    assert code == 0, stderr
    capfd.readouterr()
    segmenter = cervseg_jax.load(
        str(folder), overrides=["infer.threshold=0.3", "infer.postprocessing={min_area_px: 5}"]
    )
    results = list(segmenter(images))
    for path, result in zip(images, results, strict=True):
        written = cv2.imread(str(tmp_path / "out" / "masks" / path.name), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(written > 0, result.mask)
        labels = cv2.imread(str(tmp_path / "out" / "instances" / path.name), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(labels, result.labels)
        assert (result.name, result.path) == (path.stem, path)
    count = sum(len(result.table["label"]) for result in results)
    assert count == len(rows_of(tmp_path / "out" / "nuclei.csv")) > 0
    results[0].save(tmp_path / "mine", "all")
    for name in ("masks", "instances", "nuclei", "geojson", "labelme", "coco"):
        (mine,) = (tmp_path / "mine" / name).iterdir()
        assert mine.read_bytes() == (tmp_path / "out" / name / mine.name).read_bytes(), name
    assert capfd.readouterr() == ("", "")


def test_training_goes_on_and_is_scored_without_a_word(finished, tmp_path, capfd, caplog):
    config, _, _ = finished
    arguments = {"run_dir": tmp_path / "run", "overrides": [f"data.root={config.parent / 'data'}", "train.epochs=1"]}
    with caplog.at_level("INFO", logger="cervseg_jax"):
        trained = cervseg_jax.train(config, **arguments)
    assert trained.folder == tmp_path / "run"
    assert trained.progress.epoch == 1
    assert "epoch 1: loss" in caplog.text
    again = cervseg_jax.train(str(config), **arguments)
    assert again.reason == "all 1 epochs are done"
    summary = cervseg_jax.evaluate(trained, "valid")
    assert summary["num_images"] == 3
    assert (tmp_path / "run" / "eval" / "valid" / "summary.json").is_file()
    assert cervseg_jax.load(trained)(np.zeros((20, 30), np.uint8)).mask.shape == (20, 30)
    assert capfd.readouterr() == ("", "")


def test_errors_are_ours_with_the_commands_messages(finished, tmp_path):
    _, folder, _ = finished
    with pytest.raises(cervseg_jax.errors.ConfigError, match="no such run folder"):
        cervseg_jax.load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(cervseg_jax.errors.CheckpointError, match=r"no config.yaml"):
        cervseg_jax.load(tmp_path / "empty")
    with pytest.raises(cervseg_jax.errors.ConfigError, match=r"did you mean infer.threshold"):
        cervseg_jax.load(folder, overrides=["infer.treshold=0.4"])
    with pytest.raises(
        cervseg_jax.errors.ConfigError, match="mpp: must be between 0.001 and 1000 micrometers, got nan"
    ):
        cervseg_jax.load(folder, mpp=float("nan"))
    with pytest.raises(cervseg_jax.errors.ConfigError, match="--split: must be one of train, valid, test, got 'tests'"):
        cervseg_jax.evaluate(folder, "tests")


def test_the_command_shows_notices_of_renamed_keys_once(finished, tmp_path):
    config, folder, _ = finished
    code, _, stderr = run(
        "eval", folder, "--split", "valid", "--set", "eval.threshold=0.4", "--set", "infer.colours=[red, blue]"
    )
    assert code == 0, stderr
    notices = [line for line in stderr.splitlines() if "uses old names" in line]
    assert len(notices) == 1
    assert notices[0].startswith("notice: --set")
    assert "eval.threshold is now infer.threshold, infer.colours is now infer.colors" in notices[0]
