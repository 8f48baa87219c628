"""One threshold: where it comes from, and that mask and label map follow it."""

import json

import numpy as np
import pytest

from cervseg_jax.errors import CheckpointError
from cervseg_jax.schema import InferConfig, PostprocessingConfig
from cervseg_jax.segmentation.postprocess import (
    Postprocessing,
    load_postprocessing,
    make_mask,
    resolve_postprocessing,
    save_postprocessing,
)
from cervseg_jax.segmentation.result import Result

TUNED = Postprocessing(0.35, params=PostprocessingConfig(min_saddle_depth=0.2))


def test_tuned_parameters_are_kept_beside_the_weights(tmp_path):
    assert load_postprocessing(tmp_path) is None
    save_postprocessing(tmp_path, TUNED)
    assert load_postprocessing(tmp_path) == TUNED


def test_the_file_of_the_first_release_is_read(tmp_path):
    old = {"threshold": 0.35, "boundary_threshold": 0.5, "min_depth": 0.2, "smoothing_px": 1.0}
    (tmp_path / "separation.json").write_text(json.dumps(old | {"min_area_px": 30, "max_hole_px": 500}))
    assert load_postprocessing(tmp_path) == TUNED
    save_postprocessing(tmp_path, Postprocessing(0.6))
    assert load_postprocessing(tmp_path) == Postprocessing(0.6)


@pytest.mark.parametrize("text", ['{"treshold": 1}', '{"threshold": 2}', "[]", "{", '{"min_depth": 0.1}'])
def test_a_damaged_file_is_named(tmp_path, text):
    (tmp_path / "postprocessing.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"postprocessing.json: is damaged"):
        load_postprocessing(tmp_path)


def test_a_set_threshold_wins_over_the_tuned_one_and_that_over_the_default(tmp_path):
    assert resolve_postprocessing(InferConfig(), tmp_path) == Postprocessing(0.5)
    save_postprocessing(tmp_path, TUNED)
    assert resolve_postprocessing(InferConfig(), tmp_path) == TUNED
    assert resolve_postprocessing(InferConfig(threshold=0.7), tmp_path) == TUNED._replace(threshold=0.7)
    params = PostprocessingConfig(min_area_px=5)
    assert resolve_postprocessing(InferConfig(postprocessing=params), tmp_path) == Postprocessing(0.35, params=params)
    assert resolve_postprocessing(InferConfig(threshold=0.7)) == Postprocessing(0.7)


@pytest.mark.parametrize("rule", ["fixed", "otsu", "triangle"])
def test_mask_and_label_map_have_one_threshold(rng, rule):
    rows, columns = np.mgrid[:80, :90]
    probs = np.exp(-(np.hypot(rows - 40, columns - 45) ** 2) / 400) * 0.9 + rng.random((80, 90)) * 0.01
    params = PostprocessingConfig(min_area_px=0, max_hole_px=0)
    postprocessing = Postprocessing(0.3, rule, params)
    result = Result(np.zeros((80, 90, 3), np.uint8), np.float32(probs)[..., None], postprocessing=postprocessing)
    assert 0 < result.mask.sum() < 80 * 90
    np.testing.assert_array_equal(result.labels > 0, result.mask)
    if rule == "fixed":
        np.testing.assert_array_equal(result.mask, np.float32(probs) >= 0.3)


def test_half_precision_is_compared_as_it_is():
    """Tiles are kept in float16: pixels at the threshold belong to the nucleus there as well."""
    probs = np.full((2, 2), 0.35, np.float16)
    assert make_mask(probs, 0.35).all()
