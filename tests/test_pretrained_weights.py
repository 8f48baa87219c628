"""The weights that come with the package."""

import hashlib
import json

import numpy as np
import pytest

import cervseg_jax
from cervseg_jax.errors import CheckpointError
from cervseg_jax.pretrained_weights import FOLDER, find_run, pretrained_names, results_folder
from cervseg_jax.runs.half_precision import save_half_precision
from cervseg_jax.runs.weights import read_contract
from tests.helpers import run, weights_of

MAX_BYTES = 10_000_000


@pytest.mark.parametrize("name", pretrained_names())
def test_they_are_small_complete_and_have_a_model_card(name):
    folder = FOLDER / name
    contract = read_contract(folder / "best")
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < MAX_BYTES
    data = (folder / "best" / contract.weights_file).read_bytes()
    assert hashlib.sha256(data).hexdigest() == contract.weights_sha256
    card = (folder / "README.md").read_text()
    for text in ("CC BY 4.0", "CC0", "research", "10.17632/jks43dkjj7"):
        assert text in card
    assert "CNSeg" not in (folder / "data.csv").read_text()


def test_a_name_stands_for_a_run_unless_a_run_folder_has_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    from pathlib import Path

    assert find_run(Path("pap")) == FOLDER / "pap"
    assert find_run(Path("./other")) == Path("other")
    assert results_folder(FOLDER / "pap") == Path("runs/pap")
    (tmp_path / "pap").mkdir()
    (tmp_path / "pap" / "config.yaml").touch()
    assert find_run(Path("pap")) == Path("pap")


def test_an_image_is_segmented_without_a_network_connection(tmp_path):
    from cervseg_jax.curation.synthetic import draw_scene

    scene = draw_scene(shape=(160, 192), seed=2)
    result = cervseg_jax.load("pap")(scene.image)
    assert result.labels.shape == (160, 192)
    assert result.scale.source == "estimated"
    assert len(result.table["label"]) == result.labels.max() > 3


def test_they_are_listed():
    code, stdout, _ = run("models", "--pretrained")
    assert code == 0
    assert "pap" in stdout and "model card" in stdout


@pytest.mark.slow
def test_results_about_them_lie_in_the_current_folder(tmp_path, monkeypatch, tiny_dataset):
    monkeypatch.chdir(tmp_path)
    code, _, stderr = run("eval", "pap", "--data", tiny_dataset)
    assert code == 0, stderr
    assert len(list((tmp_path / "runs" / "pap" / "eval").iterdir())) == 1
    assert not (FOLDER / "pap" / "eval").exists()


def test_half_precision_keeps_statistics_and_refuses_what_overflows(tmp_path):
    half = tmp_path / "half"
    save_half_precision(FOLDER / "pap" / "best", half)
    before, after = weights_of(FOLDER / "pap"), np.load(half / read_contract(half).weights_file)
    for name in after.files:
        assert after[name].dtype == (np.float32 if "moving_" in name else np.float16)
        np.testing.assert_array_equal(after[name], before[name])
    large = tmp_path / "large"
    large.mkdir()
    contract = json.loads((half / "contract.json").read_text())
    np.savez(large / contract["weights_file"], a=np.array([1e9], np.float32))
    contract["weights_sha256"] = hashlib.sha256((large / contract["weights_file"]).read_bytes()).hexdigest()
    (large / "contract.json").write_text(json.dumps(contract))
    with pytest.raises(CheckpointError, match="beyond the range of float16"):
        save_half_precision(large, tmp_path / "copy")
