"""Plans of trainings, and `train --data`."""

import json
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml

from cervseg_jax.config import load_config
from cervseg_jax.console import Reporter
from cervseg_jax.curation.dataset_folder import write_scenes
from cervseg_jax.errors import CervsegError
from cervseg_jax.training.own_data import planned_recipe
from cervseg_jax.training.plan import DataProperties, plan_values
from tests.helpers import SHARED, refused, rows_of, run

SMALL = ("--set", "train.epochs=2", "--set", "train.steps_per_epoch=2", "--set", "train.batch_size=2")


def properties(**changed):
    values = {
        "num_train": 8,
        "num_valid": 0,
        "num_sources": 8,
        "num_with_instances": 8,
        "diameters_px": np.array([20.0, 22.0, 24.0]),
        "spread": 1.7,
        "gray_share": 0.0,
    }
    return DataProperties(**(values | changed))


def planned(tmp_path, **changed):
    return {value.key: value.value for value in plan_values(properties(**changed), tmp_path)}


def test_a_plan_follows_the_data(tmp_path):
    few, many = planned(tmp_path), planned(tmp_path, num_train=30)
    assert few["train.epochs"] * few["train.steps_per_epoch"] == 400
    assert many["train.epochs"] * many["train.steps_per_epoch"] == 1500
    assert few["data.train_on_valid"] and few["train.init_share"] == 0.3 and few["train.early_stop_patience"] is None
    enough = planned(tmp_path, num_train=20, num_valid=5, num_sources=25)
    assert not enough["data.train_on_valid"] and enough["train.early_stop_patience"] == 8
    assert few["infer.nucleus_px"] == 22.0
    assert "infer.nucleus_px" not in planned(tmp_path, diameters_px=np.array([9.0, 22.0, 60.0]))
    names = [
        [operation["name"] for operation in planned(tmp_path, gray_share=share)["augment.operations"]]
        for share in (0.5, 1.0)
    ]
    assert "stain" in names[0] and "stain" not in names[1]
    wide, narrow = (planned(tmp_path, spread=spread)["augment.window"]["scale"] for spread in (4.0, 1.1))
    assert wide == [0.62, 1.6] and narrow == [0.8, 1.25]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mine") / "slides"
    write_scenes(folder, num_images=6, seed=3, size=(96, 112))
    shutil.rmtree(folder / "instances")
    return folder


def test_a_folder_of_annotated_images_is_prepared_and_planned_once(source, tmp_path):
    reporter = Reporter(is_silent=True)
    recipe = planned_recipe(source, tmp_path / "slides", reporter=reporter).path
    assert recipe == tmp_path / "slides.yaml"
    assert "#" in recipe.read_text()
    config = load_config(recipe)
    assert str(config.train.init_from) == "pap"
    assert config.data.root == tmp_path / "slides-dataset"
    assert [path.name for path in config.data.root.iterdir() if path.name in ("train", "valid", "test")] == ["train"]
    assert config.data.train_on_valid and "6 sources are too few" in recipe.read_text()
    recipe.write_text(recipe.read_text().replace("init_share: 0.3", "init_share: 0.2"))
    again = planned_recipe(source, tmp_path / "slides", reporter=reporter)
    assert load_config(again.path).train.init_share == 0.2 and again.known is None


@pytest.mark.parametrize("overrides, num_reads", [((), 1), (("--set", "data.bit_depth=12"), 2)])
def test_files_that_a_plan_has_read_are_read_again_only_if_differently(
    source, tmp_path, monkeypatch, overrides, num_reads
):
    dataset = tmp_path / "dataset"
    assert run("prepare", source, "--out", dataset, "--test", "0", "--valid", "0.3")[0] == 0
    reads, open_file = Counter(), os.open

    def counted(path, *arguments, **options):
        if str(path).startswith(str(dataset)):
            reads[Path(path).relative_to(dataset).parts[1]] += 1
        return open_file(path, *arguments, **options)

    def stop(config, run, data, **_):
        assert data.scale.nucleus_px == 16
        assert [(split, len(pairs)) for split, pairs in data.pairs.items()] == [("train", 6)]
        raise CervsegError("all is read")

    monkeypatch.setattr(os, "open", counted)
    monkeypatch.setattr("cervseg_jax.training.run._train_one", stop)
    code, _, stderr = run("train", "--data", dataset, "--run-dir", tmp_path / "run", *SMALL, *overrides)
    assert code and "all is read" in stderr
    assert reads == dict.fromkeys(("images", "masks", "instances"), 6 * num_reads)


@pytest.mark.slow
def test_a_folder_of_annotated_images_is_prepared_planned_and_trained(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, stdout, stderr = run("train", "--data", source, *SMALL)
    assert code == 0, stderr
    assert f"next: cervseg-jax infer {Path('runs/slides')} --images FOLDER" in stdout
    recipe = tmp_path / "runs" / "slides.yaml"
    assert "#" in recipe.read_text() and yaml.safe_load(recipe.read_text())["train"]["init_from"] == "pap"
    config = load_config(recipe)
    assert config.data.root == tmp_path / "runs" / "slides-dataset"
    assert len(rows_of(tmp_path / "runs" / "slides" / "metrics.csv")) == 2
    contract = json.loads((tmp_path / "runs" / "slides" / "best" / "contract.json").read_text())
    assert contract["scale"]["nucleus_px"] == config.data.nucleus_px
    code, stdout, stderr = run("train", "--data", source, *SMALL)
    assert code == 0 and "as planned before" in stdout + stderr


def test_plan_shows_the_recipe_and_writes_it_once(source, tmp_path):
    dataset = tmp_path / "dataset"
    assert run("prepare", source, "--out", dataset, "--test", "0", "--valid", "0.3")[0] == 0
    code, stdout, _ = run("plan", dataset)
    assert code == 0 and "# " in stdout
    assert run("plan", dataset, "-o", tmp_path / "mine.yaml")[0] == 0
    assert (tmp_path / "mine.yaml").read_text() == stdout
    assert "exists already" in refused(2, "plan", dataset, "-o", tmp_path / "mine.yaml")
    assert "is no dataset" in refused(2, "plan", source)


def test_a_config_or_a_folder_is_needed(tmp_path):
    assert "needs a config or --data FOLDER" in refused(2, "train")
    assert "not both" in refused(2, "train", "quickstart", "--data", tmp_path)
    assert "no such folder" in refused(2, "train", "--data", tmp_path / "none")


@pytest.mark.slow
def test_masks_alone_train_the_mask_of_built_in_weights(tmp_path, monkeypatch):
    if not SHARED.exists():
        pytest.skip("needs ../shared")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "masks_only"
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
        for path in sorted((SHARED / "data" / "cnseg_nucleus" / name).iterdir())[:5]:
            shutil.copyfile(path, folder / name / path.name)
    code, _, stderr = run("train", "--data", folder, *SMALL)
    assert code == 0, stderr
