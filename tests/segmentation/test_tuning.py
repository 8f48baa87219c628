"""Tuning of the separation, and its file."""

import numpy as np
import pytest

from cervseg_jax.data.targets import target_maps
from cervseg_jax.errors import CheckpointError
from cervseg_jax.schema import PostprocessingConfig
from cervseg_jax.segmentation.tuning import load_postprocessing, save_postprocessing, tune


def test_the_grid_finds_what_the_maps_need(rng):
    """A mask that is certain at 0.4 only: the default threshold would find nothing."""
    rows, columns = np.mgrid[:60, :90]
    truth = np.zeros((60, 90), np.int32)
    for number, (row, column) in enumerate([(20, 25), (20, 46), (42, 70)], start=1):
        truth[np.hypot(rows - row, columns - column) < 11] = number
    maps = np.dstack([0.4 * (truth > 0), target_maps(truth, ("mask", "distance"))[..., 0] / 255])
    rules, quality = tune([maps], [truth], ("mask", "distance"))
    assert rules.threshold == 0.35
    assert quality > 0.95


def test_rules_are_kept_beside_the_weights(tmp_path):
    assert load_postprocessing(tmp_path) == PostprocessingConfig()
    rules = PostprocessingConfig(threshold=0.35, min_saddle_depth=0.2)
    save_postprocessing(tmp_path, rules)
    assert load_postprocessing(tmp_path) == rules
    (tmp_path / "postprocessing.json").write_text('{"treshold": 1}')
    with pytest.raises(CheckpointError, match="is damaged"):
        load_postprocessing(tmp_path)
