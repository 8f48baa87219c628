"""A training with `data.nucleus_px`, and what follows from its weights."""

import json

import numpy as np
import pytest

import cervseg_jax
from cervseg_jax.curation.dataset_folder import write_scenes
from cervseg_jax.errors import ConfigError
from cervseg_jax.files import make_folder, write_png
from tests.helpers import refused, rows_of, run

NETWORK = (
    "--set", "model.image_size=[64, 64]",
    "--set", "model.args={base_filters: 4, levels: 2, kernel_size: 3, dilation: 1, batch_norm: true}",
    "--set", "train.epochs=2",
    "--set", "train.steps_per_epoch=3",
    "--set", "train.batch_size=2",
    "--set", "augment.operations=[]",
)  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scaled")
    write_scenes(folder / "source", num_images=6, seed=4, size=(96, 128))
    options = ("--annotations", "instances", "--valid", "0.3", "--test", "0.2")
    assert run("prepare", folder / "source", "--out", folder / "data", *options)[0] == 0
    settings = ("--set", f"data.root={folder / 'data'}", "--set", "data.nucleus_px=auto", "--set", "data.mpp=0.25")
    code, stdout, stderr = run("train", "nuclei_small", "--run-dir", folder / "run", *settings, *NETWORK)
    assert code == 0, stderr
    assert "scaled to 20 px" in stdout + stderr
    return folder


def test_weights_know_their_scale(trained):
    scale = json.loads((trained / "run" / "best" / "contract.json").read_text())["scale"]
    assert scale["nucleus_px"] == 20.0
    assert scale["mpp"] > 0.25 / 8
    assert len(rows_of(trained / "run" / "metrics.csv")) == 2
    assert len(list((trained / "run" / "previews" / "epoch_0002").glob("synthetic*.png"))) >= 1


def test_the_same_command_finds_the_finished_run(trained):
    settings = ("--set", f"data.root={trained / 'data'}", "--set", "data.nucleus_px=auto", "--set", "data.mpp=0.25")
    code, stdout, stderr = run("train", "nuclei_small", "--run-dir", trained / "run", *settings, *NETWORK)
    assert code == 0, stderr
    assert "all 2 epochs are done" in stdout + stderr


def test_eval_scores_at_the_scale(trained):
    code, _, stderr = run("eval", trained / "run", "--split", "valid")
    assert code == 0, stderr
    summary = json.loads((trained / "run" / "eval" / "valid" / "summary.json").read_text())
    assert summary["loss"] > 0


@pytest.mark.parametrize(
    ("options", "source", "size"),
    [(("--nucleus-px", "25"), "given", 25.0), (("--mpp", "0.25"), "pixel size", None)],
)
def test_infer_says_what_size_it_took(trained, tmp_path, options, source, size):
    images = trained / "data" / "valid" / "images"
    code, _, stderr = run("infer", trained / "run", "--images", images, "--out", tmp_path / "out", *options)
    assert code == 0, stderr
    rows = rows_of(tmp_path / "out" / "images.csv")
    assert {row["scale_from"] for row in rows} == {source}
    assert all(size is None or float(row["nucleus_px"]) == size for row in rows)


def test_a_size_needs_weights_of_one_scale(finished, tmp_path):
    _, run_folder, _ = finished
    write_png(make_folder(tmp_path / "images") / "a.png", np.zeros((8, 8, 3), np.uint8))
    options = ("--images", tmp_path / "images", "--out", tmp_path / "o", "--nucleus-px", "9")
    message = refused(2, "infer", run_folder, *options)
    assert "not trained at one scale" in message
    with pytest.raises(ConfigError, match="not trained at one scale"):
        cervseg_jax.load(run_folder, nucleus_px=9)
