"""The commands as a user runs them, in processes of their own."""

import fcntl
import functools
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import jax.numpy as jnp
import numpy as np
import pytest

from cervseg_jax.annotations.outlines import draw_instances
from cervseg_jax.annotations.reader import read_annotation
from cervseg_jax.config import load_config
from cervseg_jax.losses import LOSSES
from cervseg_jax.runs.weights import save_weights
from tests.helpers import (
    COMMAND,
    ENVIRONMENT,
    ROOT,
    assert_same_run,
    draw_discs,
    refused,
    rows_of,
    run,
    run_process,
    start,
    wait_for,
    weights_of,
)


def test_training_leaves_the_promised_files(finished):
    _, folder, stdout = finished
    for name in ("config.yaml", "env.json", "metrics.csv", "history.json", "train_losses.png", "train_metrics.png"):
        assert (folder / name).is_file(), name
    rows = rows_of(folder / "metrics.csv")
    assert list(rows[0])[:8] == [
        "epoch", "step", "loss", "val_loss", "dice_coef", "val_dice_coef", "dice_mean", "val_dice_mean",
    ]  # fmt: skip
    assert list(rows[0])[8:] == ["learning_rate", "seconds", "images_per_second", "input_wait"]
    assert [(row["epoch"], row["step"]) for row in rows] == [("1", "2"), ("2", "4"), ("3", "6")]
    history = json.loads((folder / "history.json").read_text())
    assert history["epoch"] == [1, 2, 3]
    previews = sorted(path.name for path in (folder / "previews" / "epoch_0003").iterdir())
    assert previews == ["disc_000.png", "disc_001.png", "sheet.png"]
    mask = cv2.imread(str(folder / "previews" / "epoch_0003" / "disc_000.png"), cv2.IMREAD_UNCHANGED)
    assert mask.shape == (48, 40)  # the image's own size, not the network's
    assert "devices: 8 x cpu" in stdout
    assert "train: 6 images of 6 sources, 48x40" in stdout


def test_one_compilation_of_the_train_step(finished):
    _, folder, _ = finished
    events = [json.loads(line)["event"] for line in (folder / "log.jsonl").read_text().splitlines()]
    assert events.count("compiled") == 1
    assert events.count("epoch") == 3


def test_a_finished_run_says_so(finished):
    config, folder, _ = finished
    before = weights_of(folder)
    code, stdout, _ = run("train", config, "--run-dir", folder)
    assert code == 0
    assert "finished: all 3 epochs are done" in stdout
    assert "compiling" not in stdout
    assert all(np.array_equal(before[name], value) for name, value in weights_of(folder).items())


def test_a_changed_config_is_refused_with_the_difference(finished):
    config, folder, _ = finished
    message = refused(2, "train", config, "--run-dir", folder, "--set", "train.learning_rate=1e-5")
    assert "train.learning_rate: 0.005 -> 1e-05" in message
    assert "--fresh" in message


@pytest.mark.slow
def test_what_changes_no_weight_may_change(finished, tmp_path):
    config, folder, _ = finished
    given = ("train", config, "--run-dir", tmp_path, "--set")
    code, _, stderr = run(*given, "train.epochs=2", "--set", "data.threads=1", "--set", "data.cache_gib=0")
    assert code == 0, stderr
    others = ("--set", "data.threads=3", "--set", "train.log_steps=1", "--set", "train.keep_checkpoints=1")
    assert "\n  train.epochs: 2 -> 3\nUse --fresh" in refused(2, *given, "train.epochs=3", *others)
    code, stdout, stderr = run(*given, "train.epochs=2", *others)
    assert code == 0, stderr
    assert "all 2 epochs are done" in stdout
    assert run(*given, "train.epochs=3", *others, "--allow-changes")[0] == 0
    assert_same_run(tmp_path, folder)


def test_changed_data_are_refused(finished, tmp_path):
    config, folder, _ = finished
    shutil.copytree(folder, tmp_path / "run")
    shutil.copytree(config.parent / "data", tmp_path / "data")
    data = ["--set", f"data.root={config.parent / 'data'}"]
    assert run("train", config, "--run-dir", tmp_path / "run", *data)[0] == 0
    extra = config.parent / "data" / "train"
    try:
        for name in ("images", "masks"):
            shutil.copy(extra / name / "disc_001.png", extra / name / "extra.png")
        message = refused(2, "train", config, "--run-dir", tmp_path / "run", *data)
        assert "the data have changed" in message
        assert "extra.png" in message
        assert run("train", config, "--run-dir", tmp_path / "run", *data, "--allow-changes")[0] == 0
    finally:
        for name in ("images", "masks"):
            (extra / name / "extra.png").unlink()


def test_names_that_are_no_utf8(finished, tmp_path):
    _, folder, _ = finished
    draw_discs(tmp_path / "in", count=1)
    images = tmp_path / "in" / "images"
    (images / "disc_000.png").rename(images / os.fsdecode(b"sp ace\xff\xe9.png"))
    (images / os.fsdecode(b"bad\xfe.png")).write_bytes(b"")
    code, _, stderr = run_process("infer", folder, "--images", images, "--out", tmp_path / "out")
    assert code == 1, stderr
    assert [os.fsencode(path.name) for path in (tmp_path / "out" / "masks").iterdir()] == [b"sp ace\xff\xe9.png"]
    assert b"bad\xfe.png" in (tmp_path / "out" / "failed.csv").read_bytes()


def test_a_training_starts_from_the_weights_of_another_run(finished, tmp_path):
    config, folder, _ = finished
    source = shutil.copytree(folder, tmp_path / "source")
    given = ("train", config, "--run-dir", tmp_path / "run", "--set", f"train.init_from={source}")
    code, _, stderr = run(*given, "--set", "train.epochs=1")
    assert code == 0, stderr
    (row,) = rows_of(tmp_path / "run" / "metrics.csv")
    assert float(row["loss"]) < float(rows_of(folder / "metrics.csv")[0]["loss"])
    shutil.rmtree(source)  # a run that has begun does without
    code, stdout, stderr = run(*given, "--set", "train.epochs=2", "--allow-changes")
    assert code == 0, stderr
    assert "1 epochs finished" in stdout
    assert "holds no trained weights" in refused(4, *given[:3], tmp_path / "other", *given[4:])


def test_fresh_starts_beside(finished):
    config, folder, _ = finished
    code, stdout, _ = run("train", config, "--run-dir", folder, "--fresh", "--set", "train.epochs=1", "--quiet")
    assert code == 0
    assert stdout == ""
    assert len(rows_of(folder.with_name("run-2") / "metrics.csv")) == 1
    assert len(rows_of(folder / "metrics.csv")) == 3


def test_eval_writes_scores_that_agree_with_numpy(finished):
    _, folder, _ = finished
    code, stdout, stderr = run("eval", folder)
    assert code == 0, stderr
    out = folder / "eval" / "test"
    lines = (out / "evaluation.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["loss", "dice_coef"]
    assert all(len(line.split(".")[1]) == 4 for line in lines)
    rows, summary = rows_of(out / "per_image.csv"), json.loads((out / "summary.json").read_text())
    assert len(rows) == summary["num_images"] == 5
    assert summary["dice_mean"] == pytest.approx(np.mean([float(row["dice"]) for row in rows]), abs=1e-6)
    counts = np.array(
        [[int(row[name]) for name in ("true_positive", "false_positive", "false_negative")] for row in rows]
    )
    tp, fp, fn = counts.sum(axis=0)
    assert summary["dice_pooled"] == pytest.approx(2 * tp / (2 * tp + fp + fn))
    assert summary["iou_pooled"] == pytest.approx(tp / (tp + fp + fn))
    assert f"{'dice':<22}{summary['dice_mean']:8.4f}  [" in stdout
    assert (out / "worst.png").is_file()
    assert (out / "best.png").is_file()


def test_eval_of_another_folder_and_of_a_missing_split(finished, tmp_path):
    _, folder, _ = finished
    draw_discs(tmp_path / "other", count=3, seed=9)
    assert run("eval", folder, "--data", tmp_path / "other")[0] == 0
    assert len(rows_of(folder / "eval" / "other" / "per_image.csv")) == 3
    assert "must be one of train, valid, test" in refused(2, "eval", folder, "--split", "tests")


def test_infer_restores_sizes_and_keeps_equal_stems_apart(finished, tmp_path):
    _, folder, _ = finished
    draw_discs(tmp_path / "in", count=2, size=(70, 90))
    images = tmp_path / "in" / "images"
    picture = cv2.imread(str(images / "disc_000.png"))
    cv2.imwrite(str(images / "disc_000.jpg"), cv2.resize(picture, (31, 65)))
    (images / "broken.png").write_bytes(b"nonsense")
    code, _, stderr = run("infer", folder, "--images", images, "--out", tmp_path / "out", "--output", "all", *EAGER)
    assert code == 1
    assert "1 of 4 images failed" in stderr
    sizes = {
        path.name: cv2.imread(str(path), cv2.IMREAD_UNCHANGED).shape for path in (tmp_path / "out" / "masks").iterdir()
    }
    assert sizes == {"disc_000_png.png": (70, 90), "disc_000_jpg.png": (65, 31), "disc_001.png": (70, 90)}
    failed = rows_of(tmp_path / "out" / "failed.csv")
    assert [Path(row["file"]).name for row in failed] == ["broken.png"]
    probs = cv2.imread(str(tmp_path / "out" / "probabilities" / "disc_001.png"), cv2.IMREAD_UNCHANGED)
    mask = cv2.imread(str(tmp_path / "out" / "masks" / "disc_001.png"), cv2.IMREAD_UNCHANGED)
    assert probs.dtype == np.uint16
    assert ((probs >= 0.2 * 65535) == (mask > 0)).mean() > 0.999
    message = refused(2, "infer", folder, "--images", images, "--out", tmp_path / "out")
    assert "holds results already" in message
    check_every_output(tmp_path / "out", images)


EAGER = ("--set", "infer.postprocessing={threshold: 0.2, min_area_px: 5}", "--set", "infer.threshold=0.2")
"""For a network that has hardly learned anything yet."""


def check_every_output(out, images):
    """Every kind of file of the three images, one nucleus as one number everywhere."""
    names = ["disc_000_jpg", "disc_000_png", "disc_001"]
    suffixes = {"nuclei": "csv", "geojson": "geojson", "coco": "json", "labelme": "json", "rois": "zip"}
    kinds = ("masks", "overlays", "instances", "probabilities", "color", *suffixes)
    for kind in kinds:
        assert sorted(path.name for path in (out / kind).iterdir()) == [
            f"{name}.{suffixes.get(kind, 'png')}" for name in names
        ]
    rows = rows_of(out / "images.csv")
    assert [row["image"] for row in rows] == names
    nuclei = rows_of(out / "nuclei.csv")
    coco = json.loads((out / "coco.json").read_text())
    assert len(nuclei) == len(coco["annotations"]) == sum(int(row["num_nuclei"]) for row in rows) > 0
    assert [entry["id"] for entry in coco["annotations"]] == list(range(1, len(nuclei) + 1))
    labels = cv2.imread(str(out / "instances" / "disc_001.png"), cv2.IMREAD_UNCHANGED)
    assert labels.dtype == np.uint16
    own = [row for row in nuclei if row["image"] == "disc_001"]
    assert [int(row["area_px"]) for row in own] == [int((labels == int(row["label"])).sum()) for row in own]
    features = json.loads((out / "geojson" / "disc_001.geojson").read_text())["features"]
    assert len(features) == len(own) == labels.max()
    (annotation,) = [read_annotation((out / "labelme" / "disc_001.json").read_bytes(), source=out)]
    drawn = draw_instances([nucleus.rings for nucleus in annotation.objects], shape=labels.shape)
    np.testing.assert_array_equal(drawn, labels)
    assert annotation.image_name in {path.name for path in images.iterdir()}


def test_infer_in_tiles_resumes_and_measures_in_micrometers(finished, tmp_path):
    _, folder, _ = finished
    draw_discs(tmp_path / "in", count=2, size=(150, 210))
    images, out = tmp_path / "in" / "images", tmp_path / "out"
    command = ("infer", folder, "--images", images, "--out", out, "--tiled", *EAGER)
    code, _, stderr = run(*command, "--mpp", 0.5, "--output", "masks,nuclei")
    assert code == 0, stderr
    rows = rows_of(out / "nuclei.csv")
    assert float(rows[0]["area_um2"]) == pytest.approx(int(rows[0]["area_px"]) / 4)
    first = (out / "masks" / "disc_000.png").stat().st_mtime_ns
    (out / ".done" / "disc_001.csv").unlink()
    (out / "masks" / "disc_001.png").write_bytes(b"cut off")
    assert "holds results already" in refused(2, *command, "--output", "masks,nuclei")
    code, _, stderr = run(*command, "--mpp", 0.5, "--output", "masks,nuclei", "--resume")
    assert code == 0, stderr
    assert (out / "masks" / "disc_000.png").stat().st_mtime_ns == first
    assert cv2.imread(str(out / "masks" / "disc_001.png")).shape[:2] == (150, 210)
    assert rows_of(out / "nuclei.csv") == rows
    assert not [path for path in out.iterdir() if path.name.startswith(".work")]
    message = refused(2, *command, "--output", "masks,nuclei", "--resume")
    assert "was made with other settings (mpp)" in message
    shutil.copytree(out, tmp_path / "damaged")
    (tmp_path / "damaged" / ".done" / "made_with.json").write_text("[")
    damaged = [tmp_path / "damaged" if argument == out else argument for argument in command]
    assert "made_with.json is damaged" in refused(2, *damaged, "--output", "masks,nuclei", "--resume")
    assert "did you mean 'masks'" in refused(2, *command, "--output", "mask")
    assert "must be less than the network's smaller side" in refused(
        2, *command, "--overwrite", "--set", "infer.tiled.overlap_px=64"
    )
    assert "infer.colors" in refused(2, *command, "--overwrite", "--set", "infer.colors=[blak, white]")


def test_heads_are_learned_tuned_and_scored(finished, tmp_path):
    config, _, _ = finished
    drawn = "data.synthetic={train: 4, valid: 2, test: 3, size: [96, 96], seed: 2}"
    arguments = ("train", config, "--set", f"data.root={tmp_path / 'data'}", "--set", drawn)
    heads = ("--set", "model.heads=[mask, boundary, distance]", "--set", "train.touching_weight=1")
    heads += ("--set", "infer.tiled={overlap_px: 8}")
    code, stdout, stderr = run(*arguments, *heads, "--set", "train.epochs=2", "--run-dir", tmp_path / "run")
    assert code == 0, stderr
    previews = sorted(path.name for path in (tmp_path / "run" / "previews" / "epoch_0002").glob("*_00004*"))
    assert previews[1] == previews[0].replace(".png", "_tiled.png")
    assert "post-processing tuned on 2 validation images, PQ" in stdout
    assert json.loads((tmp_path / "run" / "best" / "contract.json").read_text())["heads"] == [
        "mask",
        "boundary",
        "distance",
    ]
    code, stdout, stderr = run("eval", tmp_path / "run")
    assert code == 0, stderr
    summary = json.loads((tmp_path / "run" / "eval" / "test" / "summary.json").read_text())
    tuned = json.loads((tmp_path / "run" / "best" / "postprocessing.json").read_text())
    assert summary["postprocessing"] == tuned | {"threshold_rule": "fixed"}
    score = summary["nuclei"]["pq"]
    assert score["low"] <= score["mean"] <= score["high"]
    assert len(rows_of(tmp_path / "run" / "eval" / "test" / "nuclei_per_image.csv")) == 3
    assert "merge_rate_touching" in stdout
    code, stdout, _ = run(*arguments, *heads, "--set", "train.epochs=2", "--run-dir", tmp_path / "run")
    assert code == 0
    assert "post-processing tuned" not in stdout
    save_weights(tmp_path / "copy", load_config(config), {}, {}, epoch=1, step=1, val_loss=0.5)
    (tmp_path / "copy" / "postprocessing.json").write_text("{}")
    save_weights(tmp_path / "copy", load_config(config), {}, {}, epoch=2, step=2, val_loss=0.4)
    assert not (tmp_path / "copy" / "postprocessing.json").exists()
    shutil.rmtree(tmp_path / "data" / "train" / "instances")
    message = refused(
        2, "train", config, "--run-dir", tmp_path / "other", *heads, "--set", f"data.root={tmp_path / 'data'}"
    )
    assert "has no train/instances" in message
    assert "the first head must be mask" in refused(2, *arguments, "--set", "model.heads=[distance]")
    assert "needs instance labels" in refused(2, *arguments, "--set", "train.touching_weight=1")


def test_infer_never_writes_among_its_inputs(finished, tmp_path):
    _, folder, _ = finished
    draw_discs(tmp_path / "in", count=1)
    images = tmp_path / "in" / "images"
    before = sorted(path.name for path in images.iterdir())
    assert "is a folder of input images" in refused(2, "infer", folder, "--images", images, "--out", images)
    assert "is a folder of input images" in refused(
        2, "infer", folder, "--images", tmp_path / "in" / "masks", "--out", tmp_path / "in"
    )
    assert sorted(path.name for path in images.iterdir()) == before
    assert "no such file or folder" in refused(2, "infer", folder, "--images", "nowhere", "--out", tmp_path / "o")


def test_several_runs_are_averaged(finished, tmp_path):
    """The mean of two networks' probabilities; runs of other sizes are refused."""
    config, folder, _ = finished
    other = ("train", config, "--run-dir", tmp_path / "other", "--set", "train.epochs=1", "--set", "train.seed=5")
    assert run(*other)[0] == 0
    images = config.parent / "data" / "test" / "images"
    ask = ("--images", images, "--output", "probabilities", "--quiet")
    combined = ("--with", tmp_path / "other")
    for name, options in (("one", (folder,)), ("two", (tmp_path / "other",)), ("mean", (folder, *combined))):
        code, _, stderr = run("infer", *options, *ask, "--out", tmp_path / name)
        assert code == 0, stderr
    read = [
        cv2.imread(str(tmp_path / name / "probabilities" / "disc_000.png"), cv2.IMREAD_UNCHANGED).astype(float)
        for name in ("one", "two", "mean")
    ]
    np.testing.assert_allclose(read[2], (read[0] + read[1]) / 2, atol=1.0)
    assert abs(read[0] - read[1]).max() > 100
    shutil.copytree(folder, tmp_path / "small")
    contract_path = tmp_path / "small" / "best" / "contract.json"
    contract_path.write_text(json.dumps(json.loads(contract_path.read_text()) | {"image_size": [32, 32]}))
    message = refused(2, "infer", folder, "--with", tmp_path / "small", *ask, "--out", tmp_path / "no")
    assert "cannot be averaged, as their heads or image sizes differ: mask at 32x48 and mask at 32x32" in message


def test_export_runs_without_the_package(finished, tmp_path):
    _, folder, _ = finished
    code, stdout, stderr = run("export", folder, "--out", tmp_path / "export")
    assert code == 0, stderr
    assert "largest difference" in stdout
    script = (tmp_path / "export" / "example.py").read_text() + "print(probabilities.shape, float(probabilities.max()))"
    blocked = "import sys; sys.modules['cervseg_jax'] = sys.modules['keras'] = None\n" + script
    done = subprocess.run(
        [sys.executable, "-c", blocked], cwd=tmp_path / "export", capture_output=True, text=True, env=ENVIRONMENT
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("(2, 32, 48, 1) 0.")
    assert "holds no trained weights" in refused(4, "export", tmp_path)
    assert "known: bioimageio, keras, onnx, stablehlo" in refused(2, "export", folder, "--format", "tflite")


# Keras' own reader of weights asks HDF5 in a way that NumPy is about to forget.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_exported_keras_file_with_its_example(finished, tmp_path):
    code, _, stderr = run("export", finished[1], "--format", "keras", "--out", tmp_path)
    assert code == 0, stderr
    script = (tmp_path / "example.py").read_text() + "print(probabilities.shape, float(probabilities.max()))"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("(2, 32, 48, 1) 0.")


@pytest.fixture(scope="module")
def straight(finished, tmp_path_factory):
    """An uninterrupted run: (arguments without the run folder, run folder)."""
    config, _, _ = finished
    arguments = ["train", config]
    for setting in ("train.epochs=3", "train.steps_per_epoch=25", f"data.root={config.parent / 'data'}"):
        arguments += ["--set", setting]
    folder = tmp_path_factory.mktemp("straight") / "run"
    code, _, stderr = run(*arguments, "--run-dir", folder)
    assert code == 0, stderr
    return arguments, folder


def test_infer_stops_when_asked_and_goes_on(finished, tmp_path):
    _, folder, _ = finished
    draw_discs(tmp_path / "in", count=3, size=(900, 900))
    out = tmp_path / "out"
    command = ("infer", folder, "--images", tmp_path / "in" / "images", "--out", out, "--tiled", "--output", "masks")
    # The first image's note raises the signal. Tiled images are predicted at most one ahead of those that are written,
    # so that the third is not begun before.
    signal_after_first = """
import signal
from cervseg_jax.segmentation.ledger import Ledger
complete, signals = Ledger.complete, iter([signal.SIGTERM])
def complete_and_signal(*arguments):
    complete(*arguments)
    for number in signals:
        signal.raise_signal(number)
Ledger.complete = complete_and_signal
"""
    code, _, stderr = run_process(*command, prelude=signal_after_first)
    assert code == 75, stderr
    assert "error: SIGTERM: stopped; finished images are kept, the same command with --resume continues" in stderr
    assert not list(out.glob(".work-*"))
    kept = {path.name: path.read_bytes() for path in out.glob(".done/*.csv")}
    assert 1 <= len(kept) <= 2
    assert not (out / "images.csv").exists()
    assert run(*command, "--resume")[0] == 0
    assert {name: (out / ".done" / name).read_bytes() for name in kept} == kept
    assert len(list((out / "masks").iterdir())) == len(rows_of(out / "images.csv")) == 3


def test_sigkill_in_mid_epoch_then_the_same_command(straight, tmp_path):
    arguments, reference = straight
    process = start(arguments, tmp_path / "killed")
    wait_for(lambda: any(tmp_path.glob("killed/checkpoints/*.sha256.json")), process)  # one state is complete
    time.sleep(0.2)
    process.kill()
    process.communicate()
    code, stdout, stderr = run(*arguments, "--run-dir", tmp_path / "killed")
    assert code == 0, stderr
    assert "resumed from step" in stdout
    assert_same_run(tmp_path / "killed", reference)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_saves_in_mid_epoch_and_exits_75(straight, tmp_path, number):
    arguments, reference = straight
    log = tmp_path / "stopped" / "log.jsonl"
    process = start(arguments, tmp_path / "stopped")
    wait_for(lambda: log.exists() and "compiled" in log.read_text(), process)
    time.sleep(0.2)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 75, stderr
    assert "the state is saved, run the same command again" in stderr
    assert "Traceback" not in stderr
    code, stdout, stderr = run(*arguments, "--run-dir", tmp_path / "stopped")
    assert code == 0, stderr
    assert "resumed from step" in stdout
    assert_same_run(tmp_path / "stopped", reference)


def test_a_second_training_in_the_same_folder_is_refused(finished, tmp_path):
    config, folder, _ = finished
    with (folder / "run.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "another process is training" in refused(2, "train", config, "--run-dir", folder)


def test_a_folder_of_something_else_is_left_alone(finished, tmp_path):
    config, _, _ = finished
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    assert "holds no run" in refused(2, "train", config, "--run-dir", tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_divergence_exits_5_and_keeps_the_last_state(finished, tmp_path, monkeypatch):
    config, folder, _ = finished
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    arguments = ("train", config, "--run-dir", copy, "--set", "train.epochs=4", "--allow-changes")
    sound = LOSSES["bce_soft_dice"]

    @functools.wraps(sound)
    def broken(*arguments, **options):
        return sound(*arguments, **options) * jnp.nan

    monkeypatch.setitem(LOSSES, "bce_soft_dice", broken)
    message = refused(5, *arguments)
    assert "the loss became nan in epoch 4, with the images disc_" in message
    assert "the last saved state is kept" in message
    monkeypatch.undo()
    code, stdout, stderr = run(*arguments)
    assert code == 0, stderr
    assert "resumed from step 6, 3 epochs finished" in stdout
    assert [row["epoch"] for row in rows_of(copy / "metrics.csv")] == ["1", "2", "3", "4"]


def test_a_far_too_large_step_is_divergence(finished, tmp_path):
    config, _, _ = finished
    settings = ["--set", f"data.root={config.parent / 'data'}", "--set", "train.learning_rate=1e30"]
    message = refused(5, "train", config, "--run-dir", tmp_path / "run", *settings)
    assert "the loss became nan in epoch 1, with the images disc_" in message


def test_a_gradient_that_is_no_number_is_divergence_though_the_loss_is_one(finished, tmp_path, monkeypatch):
    """The weights would be lost at once; no state may be saved with them, not even when it is time for one."""
    config, _, _ = finished
    sound = LOSSES["bce_soft_dice"]

    def broken(logits, masks, valid):
        return sound(logits, masks, valid) + jnp.sqrt(0.0 * jnp.sum(logits))  # the root's slope at 0 is infinite

    monkeypatch.setitem(LOSSES, "bce_soft_dice", broken)
    settings = ("--set", f"data.root={config.parent / 'data'}", "--set", "train.save_minutes=1e-6")
    message = refused(5, "train", config, "--run-dir", tmp_path / "run", *settings)
    assert "the gradient became nan in epoch 1" in message
    assert "disc_" in message
    assert not [path for path in (tmp_path / "run" / "checkpoints").iterdir() if path.is_dir()]


def test_damaged_weights_and_foreign_folders(finished, tmp_path):
    _, folder, _ = finished
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    weights = next((copy / "best").glob("*.npz"))
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    assert "is damaged" in refused(4, "eval", copy)
    contract = json.loads((copy / "best" / "contract.json").read_text())
    contract["model_args"]["base_filters"] = 8
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    contract["weights_sha256"] = hashlib.sha256(bytes(data)).hexdigest()
    (copy / "best" / "contract.json").write_text(json.dumps(contract))
    assert "the network needs" in refused(4, "eval", copy)
    shutil.rmtree(copy / "best")
    assert "holds no trained weights" in refused(4, "eval", copy)
    assert "is no run folder" in refused(4, "eval", tmp_path)
    assert "no such run folder" in refused(2, "eval", tmp_path / "nowhere")


def test_every_damaged_state_is_exit_4(finished, tmp_path):
    config, folder, _ = finished
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    for state in (copy / "checkpoints").iterdir():
        if state.name.isdigit():
            next(path for path in state.rglob("*") if path.is_file() and path.stat().st_size > 100).write_bytes(b"x")
    message = refused(4, "train", config, "--run-dir", copy)
    assert "no usable state" in message


@pytest.mark.parametrize(
    ("overrides", "code", "message"),
    [
        (["train.epoch=3"], 2, "did you mean train.epochs?"),
        (["model.image_size=[2, 48]"], 2, "multiples of 4"),
        (["runtime.require=tpu"], 2, "tpu is required, got cpu"),
        (["runtime.mesh={data: 4, spatial: 4}"], 2, "needs 16 devices, got 8"),
        (["data.root=/nowhere"], 2, "no such folder: /nowhere"),
    ],
)
def test_wrong_settings(finished, overrides, code, message):
    config, folder, _ = finished
    arguments = [item for override in overrides for item in ("--set", override)]
    assert message in refused(code, "train", config, "--run-dir", folder.with_name("never"), *arguments)
    assert not folder.with_name("never").exists()


def test_bad_data_is_exit_3_and_can_be_skipped(finished, tmp_path):
    config, _, _ = finished
    shutil.copytree(config.parent / "data", tmp_path / "data")
    (tmp_path / "data" / "train" / "images" / "disc_001.png").write_bytes(b"")
    settings = ["--run-dir", tmp_path / "r", "--set", f"data.root={tmp_path / 'data'}", "--set", "train.epochs=1"]
    message = refused(3, "train", config, *settings)
    assert "disc_001.png: is empty (zero bytes)" in message
    code, stdout, stderr = run("train", config, *settings, "--set", "data.on_bad_file=skip")
    assert code == 0, stderr
    assert "train: 5 images" in stdout
    assert "1 files are left out" in stderr


def test_a_full_disk_is_one_message_and_the_saved_states_stay(finished, tmp_path):
    config, folder, _ = finished
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)

    small_files = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192)); "
    )
    settings = ["--set", "train.epochs=4", "--allow-changes"]
    code, _, stderr = run_process("train", config, "--run-dir", copy, *settings, prelude=small_files)
    assert code == 4, stderr
    assert stderr.count("error: ") == 1
    assert "could not be saved" in stderr  # the best weights, or the state where this epoch is not the best
    code, stdout, stderr = run("train", config, "--run-dir", copy, *settings)
    assert code == 0, stderr
    assert "resumed from step 6, 3 epochs finished" in stdout
    assert len(rows_of(copy / "metrics.csv")) == 4


def test_clustered_without_data_says_where_to_get_it(tmp_path):
    message = refused(2, "train", ROOT / "configs" / "clustered.yaml", "--set", f"data.root={tmp_path / 'no'}")
    assert "10.1016/j.cmpb.2023.107732" in message


def test_synth_and_models(tmp_path):
    assert run("synth", tmp_path / "s", "--images", 2, "--seed", 3, "--size", 96, 128)[0] == 0
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == ["covered", "images", "instances", "labelme"]
    assert "exists and is not an empty folder" in refused(2, "synth", tmp_path / "s", "--images", 1)
    code, stdout, _ = run("models")
    assert code == 0
    assert "arXiv:1505.04597" in stdout
    small = ("--size", 64, 64, "--set", "model.args.base_filters=4", "--set", "model.args.levels=3")
    code, stdout, _ = run("models", "unet", *small, "--out", tmp_path / "unet")
    assert code == 0
    assert "encoder0_conv1" in stdout
    assert sorted(path.name for path in (tmp_path / "unet").iterdir()) == [
        "facts.json",
        "graph.png",
        "layers.txt",
        "summary.md",
    ]
    facts = json.loads((tmp_path / "unet" / "facts.json").read_text())
    assert facts["cost"]["step_flops"] > facts["cost"]["forward_flops"] > 1e6
    assert "ImageNet weights of resnet50" in run("models", "deeplab_v3plus", "--size", 64, 64, "--no-cost")[1]
    assert "need the name of a model" in refused(2, "models", "--out", tmp_path / "all")
    assert "did you mean 'unet'" in refused(2, "models", "unte")


def test_no_folder_is_named_after_an_address(finished, tmp_path, monkeypatch):
    """What is refused at an address leaves nothing on this machine."""
    config, folder, _ = finished
    monkeypatch.chdir(tmp_path)
    message = refused(2, "train", config, "--run-dir", "s3://bucket/runs/a", "--quiet")
    assert "s3://bucket/runs/a: a training writes its run to gs:// or to a disk" in message
    for arguments in (("synth", "gs://bucket/new", "--images", "1"), ("prepare", tmp_path, "--out", "gs://bucket/new")):
        assert "is not on this machine" in refused(2, *arguments, "--quiet")
    assert "az:// addresses are not read" in refused(
        2, "infer", folder, "--images", "az://bucket/images", "--out", tmp_path / "masks"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="address space is limited on Linux alone")
def test_too_little_memory_ends_in_advice(tiny_config, tmp_path):
    """The step needs about 19 GiB and may have 9: the error comes when its results are read."""
    settings = (
        "model.image_size=[256,256]",
        "model.args.base_filters=32",
        "train.batch_size=128",
        "train.grad_accum_steps=1",
    )
    arguments = ["train", tiny_config, "--run-dir", tmp_path / "run", "--quiet"]
    for setting in settings:
        arguments += ["--set", setting]
    limited = ["bash", "-c", f'ulimit -v {9 * 2**20} && exec "$@"', "-", *COMMAND, *map(str, arguments)]
    done = subprocess.run(limited, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "error: the device has too little memory (the step needs " in done.stderr
    assert "train.grad_accum_steps=2" in done.stderr
    assert "Traceback" not in done.stderr
