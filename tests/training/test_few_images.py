"""Trainings on few images: without validation images, and with a share of the initial weights."""

import json
import shutil

import numpy as np
import pytest

from cervseg_jax.runs.weights import POSTPROCESSING_FILE, read_arrays, read_contract
from tests.helpers import refused, rows_of, run

ALL_IMAGES = (
    *("--set", "data.train_on_valid=true", "--set", "train.plateau=null", "--set", "train.early_stop_patience=null"),
    *("--set", "train.ema_decay=0.9", "--set", "infer.num_infer_images=8"),
)


def weights(folder):
    return read_arrays(folder / "best", read_contract(folder / "best"))


@pytest.fixture(scope="module")
def trained(finished, tmp_path_factory):
    """Folder with `source`, and with `run_0` and `run_3`, trained from it on all images with a share of 0 and 0.3."""
    config, source, _ = finished
    folder = tmp_path_factory.mktemp("few")
    shutil.copytree(source, folder / "source")
    (folder / "source" / "best" / POSTPROCESSING_FILE).write_text('{"threshold": 0.4, "min_area_px": 7}')
    outputs = {}
    for share in (0, 3):
        given = ("train", config, "--run-dir", folder / f"run_{share}", *ALL_IMAGES)
        given += ("--set", f"train.init_from={folder / 'source'}", "--set", f"train.init_share={share / 10}")
        for epochs in (1, 2):  # resumes between the epochs
            code, outputs[share], stderr = run(*given, "--set", f"train.epochs={epochs}", "--allow-changes")
            assert code == 0, stderr
            assert (folder / f"run_{share}" / "best" / POSTPROCESSING_FILE).is_file()
    return folder, outputs[3]


def test_a_share_of_the_initial_weights_is_stored(trained):
    folder, _ = trained
    initial, adapted, mixed = (weights(folder / name) for name in ("source", "run_0", "run_3"))
    assert any(np.abs(initial[name] - adapted[name]).max() > 0.01 for name in initial)
    for name, values in mixed.items():
        np.testing.assert_allclose(values, 0.7 * adapted[name] + 0.3 * initial[name], rtol=1e-5, atol=1e-6)


def test_all_images_are_trained_on_and_the_last_epoch_stays(trained):
    folder, stdout = trained
    rows = rows_of(folder / "run_3" / "metrics.csv")
    assert [row["val_loss"] for row in rows] == ["", ""] and all(float(row["loss"]) for row in rows)
    assert read_contract(folder / "run_3" / "best").epoch == 2
    files = rows_of(folder / "run_3" / "data.csv")
    assert {split: sum(row["split"] == split for row in files) for split in ("train", "valid", "test")} == {
        "train": 9,
        "valid": 0,
        "test": 5,
    }
    assert "the last weights are kept" in stdout and "best" not in stdout.replace("finished/run/best", "")
    previews = {path.stem for path in (folder / "run_3" / "previews" / "epoch_0002").glob("disc_*.png")}
    assert len(previews) == 8 and {"disc_000", "disc_000_valid"} < previews


def test_what_cannot_be_tuned_is_kept(trained):
    folder, stdout = trained
    stored = json.loads((folder / "run_3" / "best" / POSTPROCESSING_FILE).read_text())
    assert stored["threshold"] == 0.4 and stored["min_area_px"] == 7
    assert f"post-processing and confidence of nuclei: as of {folder / 'source'}" in stdout


def test_scores_of_trained_images_are_marked(trained):
    folder, _ = trained
    assert "3 of 3 images are among those that" in refused(3, "eval", folder / "run_3", "--split", "valid")
    assert run("eval", folder / "run_3", "--split", "valid", "--allow-trained")[0] == 0
    code, _, stderr = run("report", folder / "run_3")
    assert code == 0, stderr
    page = (folder / "run_3" / "report.html").read_text()
    assert "trained on 3 of these images" in page and "best epoch was selected" not in page and '"best":0' in page
    assert "The network is trained on these images" in page and "Validation images" not in page


def test_validation_may_return(trained, finished, tmp_path):
    folder, _ = trained
    shutil.copytree(folder / "run_0", tmp_path / "run")
    given = ("train", finished[0], "--run-dir", tmp_path / "run", "--set", f"train.init_from={folder / 'source'}")
    more = ("--set", "train.epochs=3", "--set", "train.selection_epochs=2", "--set", "train.ema_decay=0.9")
    code, _, stderr = run(*given, *more, "--allow-changes")
    assert code == 0, stderr
    assert read_contract(tmp_path / "run" / "best").epoch == 3


def test_other_weights_are_not_mixed_in_on_resuming(trained, finished, tmp_path):
    folder, _ = trained
    shutil.copytree(folder / "run_3", tmp_path / "run")
    given = ("train", finished[0], "--run-dir", tmp_path / "run", *ALL_IMAGES, "--set", "train.epochs=3")
    given += ("--set", f"train.init_from={folder / 'run_0'}", "--set", "train.init_share=0.3", "--allow-changes")
    assert "has other weights than when this run began" in refused(2, *given)


def test_settings_that_need_validation_or_initial_weights(finished, tmp_path):
    config, _, _ = finished
    given = ("train", config, "--run-dir", tmp_path / "run", "--set")
    assert "leaves no validation images" in refused(2, *given, "data.train_on_valid=true")
    assert "needs the weights of train.init_from" in refused(2, *given, "train.init_share=0.3")
