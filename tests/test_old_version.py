"""Folders that version 0.1.0 wrote are still read: configs, a dataset, runs, checkpoints, results of `infer`.

`fixtures/version_0_1.tar.xz` was written by that version on synthetic cells; its README.md lists the contents.
"""

import json
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from cervseg_jax.config import load_config
from cervseg_jax.runs.weights import read_contract
from tests.helpers import embedded_data, rows_of, run

ARCHIVE = Path(__file__).parent / "fixtures" / "version_0_1.tar.xz"
PLACEHOLDER = "@FIXTURE@"


def unpack(folder):
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    for path in folder.rglob("*"):
        if path.suffix in {".yaml", ".csv", ".json", ".jsonl"} and "checkpoints" not in path.parts:
            path.write_text(path.read_text().replace(PLACEHOLDER, str(folder)))
    return folder


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    return unpack(tmp_path_factory.mktemp("old"))


@pytest.fixture(scope="module")
def expected(old):
    return json.loads((old / "expected.json").read_text())


def pixels(path):
    return cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)


@pytest.mark.parametrize("name", ["full_plateau.yaml", "full_cosine.yaml", "minimal.yaml"])
def test_old_configs_keep_their_meaning(old, expected, caplog, name):
    path = old / "configs" / name
    config = load_config(path).model_dump(mode="json")
    before = expected["resolved_configs"][name]
    has_old_key = name == "full_plateau.yaml"
    assert ("accumulate:" in path.read_text()) == has_old_key
    assert ("train.accumulate is now train.grad_accum_steps" in caplog.text) == has_old_key
    renamed = {
        "rate_factors": "lr_multipliers",
        "accumulate": "grad_accum_steps",
        "side_loss_weight": "deep_supervision_weight",
        "norm_warmup": "batch_norm_warmup",
    }
    for key, value in before["train"].items():
        assert config["train"][renamed.get(key, key)] == value, key
    assert config["runtime"]["remat"] == before["runtime"]["recompute"]
    assert config["infer"]["colors"] == before["infer"]["colours"]
    assert config["model"]["heads"] == before["model"]["heads"]
    assert config["augment"]["operations"] == before["augment"]["operations"]
    if before["infer"]["threshold"] != 0.5:
        assert config["infer"]["threshold"] is not None


def test_an_old_run_is_scored_as_before(old, expected):
    code, _, stderr = run("eval", old / "run", "--split", "test", "--quiet")
    assert code == 0, stderr
    assert "eval.threshold is now infer.threshold" in stderr
    summary = json.loads((old / "run" / "eval" / "test" / "summary.json").read_text())
    before = expected["eval"]["test"]
    assert summary["threshold"] == before["threshold"] == 0.45
    for name in ("loss", "dice_coef", "dice_mean", "iou_pooled", "recall_mean", "soft_dice_mean", "brier_mean"):
        assert summary[name] == pytest.approx(before[name], abs=1e-3), name


def test_an_old_run_infers_as_before(old, expected, tmp_path):
    images = old / "dataset" / "test" / "images"
    # 0.1.0 divided nuclei at the tuned threshold of separation.json, whatever infer.threshold said.
    options = ("--output", "all", "--mpp", "0.25", "--set", "infer.threshold=null", "--quiet")
    code, _, stderr = run("infer", old / "run", "--images", images, "--out", tmp_path / "found", *options)
    assert code == 0, stderr
    for path in (old / "found" / "probabilities").iterdir():
        np.testing.assert_allclose(pixels(tmp_path / "found" / "probabilities" / path.name), pixels(path), atol=64)
    header, *rows = expected["infer_images"]
    counts = {row[0]: int(row[header.index("num_nuclei")]) for row in rows}
    assert {row["image"]: int(row["num_nuclei"]) for row in rows_of(tmp_path / "found" / "images.csv")} == counts
    for path in (old / "found" / "instances").iterdir():
        now, before = pixels(tmp_path / "found" / "instances" / path.name), pixels(path)
        assert np.mean(now == before) > 0.99  # parts attached at a corner are dropped now


def test_an_old_contract_states_input_and_output_apart(old):
    assert "its output are logits" in (old / "run" / "best" / "contract.json").read_text()
    contract = read_contract(old / "run" / "best")
    assert contract.preprocessing.endswith("the network scales inside")
    assert contract.output.startswith("logits")


def test_an_old_training_goes_on(old, expected):
    code, stdout, stderr = run("train", old / "recipe.yaml", "--run-dir", old / "run_unfinished")
    assert code == 0, stderr
    assert "resumed from step 28" in stdout
    losses = [float(row["val_loss"]) for row in rows_of(old / "run_unfinished" / "metrics.csv")]
    np.testing.assert_allclose(losses, expected["val_losses"], rtol=1e-3)


def test_reports_of_old_folders(tmp_path):
    old = unpack(tmp_path)  # as the old version left them; other tests score the run again
    for folder in ("run", "found"):
        code, _, stderr = run("report", old / folder)
        assert code == 0, stderr
        shown = embedded_data((old / folder / "report.html").read_text())["images"]
        uncertainties = {image["name"]: image["scores"]["uncertainty"] for image in shown}  # the column was "doubt"
        assert uncertainties == {"synthetic_005_00002": 0.649834, "synthetic_005_00005": 0.788818}


def test_an_old_dataset_passes_the_audit_as_before(old, tmp_path):
    code, stdout, stderr = run("audit", old / "dataset", "--out", tmp_path / "audit.json")
    assert code == 1, stderr
    before = json.loads((old / "dataset" / "audit.json").read_text())
    after = json.loads((tmp_path / "audit.json").read_text())
    assert [finding["name"] for finding in before["findings"]] == ["misregistered"]
    assert [finding["name"] for finding in after["findings"]] == ["misregistered"]
