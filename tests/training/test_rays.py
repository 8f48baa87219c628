"""A run with the head "rays" from drawn nuclei to files and scores, and weights that get this head."""

import csv
import json

import numpy as np
import pytest

import cervseg_jax
from cervseg_jax.config import load_config
from cervseg_jax.errors import ConfigError
from cervseg_jax.runs.new_heads import with_new_heads
from cervseg_jax.runs.weights import CONFIDENCE_FILE, POSTPROCESSING_FILE
from tests.helpers import run

SETTINGS = (
    "model.heads=[mask, boundary, rays]",
    "data.synthetic={train: 8, valid: 4, test: 3, size: [96, 96], seed: 5}",
    "augment.operations=[{name: flip}, {name: overlap, args: {max_copies: 2}}]",
    "train.epochs=2",
    "model.image_size=[64, 64]",
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    from tests.helpers import TINY_CONFIG

    folder = tmp_path_factory.mktemp("rays")
    (folder / "tiny.yaml").write_text(TINY_CONFIG)
    settings = [item for setting in SETTINGS for item in ("--set", setting)]
    code, stdout, stderr = run("train", folder / "tiny.yaml", "--run-dir", folder / "run", *settings)
    assert code == 0, stderr
    return folder, stdout


def test_a_run_is_tuned_scored_and_writes_whole_nuclei(trained, tmp_path):
    folder, stdout = trained
    assert (folder / "data" / "train" / "covered").is_dir()
    tuned = json.loads((folder / "run" / "best" / POSTPROCESSING_FILE).read_text())
    assert {"min_score", "max_iou"} <= tuned.keys()
    code, _, stderr = run("eval", folder / "run")
    assert code == 0, stderr
    summary = json.loads((folder / "run" / "eval" / "test" / "summary.json").read_text())
    assert 0 <= summary["nuclei"]["pq_whole"]["mean"] <= 1
    assert sum(summary["nuclei"]["num_true_by_overlap"].values()) == summary["nuclei"]["num_true"]
    has_confidence = (folder / "run" / "best" / CONFIDENCE_FILE).is_file()
    assert ("confidence" in summary) == has_confidence
    code, _, stderr = run(
        "infer", folder / "run", "--images", folder / "data" / "test" / "images", "--out", tmp_path / "out", "--tiled"
    )
    assert code == 0, stderr
    with (tmp_path / "out" / "nuclei.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert all(int(row["whole_area_px"]) >= int(row["area_px"]) for row in rows)
    assert all(("probability" in row) == has_confidence for row in rows)


def test_symmetries_and_whole_images_are_predicted(trained, rng):
    folder, _ = trained
    image = rng.integers(0, 256, (90, 120, 3), np.uint8)
    for settings in ((), ("infer.test_time_augmentation=true",), ("infer.tiled={}",)):
        result = cervseg_jax.load(folder / "run", overrides=settings)(image)
        assert len(result.outlines) == len(result.extents) == result.labels.max()


def test_new_heads_start_from_their_initial_values(rng):
    params = {
        "conv/kernel": np.zeros((3, 3, 2, 4)),
        "head/kernel": rng.normal(size=(1, 1, 4, 5)),
        "head/bias": np.zeros(5),
        "half_size_head/bias": np.ones(7),
    }
    stored = {"conv/kernel": np.ones((3, 3, 2, 4)), "head/kernel": np.full((1, 1, 4, 2), 9.0), "head/bias": np.ones(2)}
    got = with_new_heads(stored, ("mask", "boundary"), ("mask", "boundary", "hover"), params)
    np.testing.assert_array_equal(got["conv/kernel"], 1)
    np.testing.assert_array_equal(got["head/kernel"][..., :2], 9)
    np.testing.assert_array_equal(got["head/kernel"][..., 2:], params["head/kernel"][..., 2:])
    np.testing.assert_array_equal(got["half_size_head/bias"], 1)
    for heads in (("mask", "boundary"), ("mask", "distance", "boundary")):
        assert with_new_heads(stored, ("mask", "boundary"), heads, params).keys() == stored.keys()


@pytest.mark.slow
def test_the_recipe_starts_from_the_built_in_weights():
    from cervseg_jax.engine.experiment import build_experiment
    from cervseg_jax.pretrained_weights import FOLDER
    from cervseg_jax.runs.weights import load_arrays, read_arrays, read_contract

    config = load_config("overlaps", ["model.image_size=[64, 64]", "train.batch_size=8"])
    experiment = build_experiment(config)
    best = FOLDER / "pap" / "best"
    params, _ = load_arrays(best, experiment.params, experiment.model_state, heads=config.model.heads)
    stored = read_arrays(best, read_contract(best))
    assert params["head/kernel"].shape == stored["head/kernel"].shape
    assert {name for name in params if name not in stored} == {"half_size_head/kernel", "half_size_head/bias"}


def test_rays_are_the_last_head(tiny_config):
    with pytest.raises(ConfigError, match="rays must be the last head"):
        load_config(tiny_config, ["model.heads=[mask, rays, boundary]"])
