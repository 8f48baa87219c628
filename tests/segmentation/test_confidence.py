"""Confidence of nuclei: the fit against SciPy, the margin against drawn deviations, files and thresholds."""

import json

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt
from scipy.optimize import minimize

from cervseg_jax.errors import CheckpointError, ConfigError
from cervseg_jax.evaluation.confidence import reliability_of
from cervseg_jax.extents import Extent
from cervseg_jax.runs.weights import CONFIDENCE_FILE
from cervseg_jax.schema import InferConfig
from cervseg_jax.segmentation.calibration import (
    COVERAGE,
    MIN_NUCLEI,
    RIDGE,
    Judged,
    deviation,
    fit_confidence,
    join_judged,
    judge,
)
from cervseg_jax.segmentation.confidence import (
    FEATURES,
    load_confidence,
    min_probability,
    outline_band,
    save_confidence,
)


def draw(rng, count):
    """Nuclei whose probability of being right follows from two features."""
    features = np.zeros((count, len(FEATURES)))
    features[:, :2] = rng.normal(size=(count, 2)) * (2, 0.5) + (1, 3)
    is_matched = rng.random(count) < 1 / (1 + np.exp(-(1.5 * features[:, 0] - 1)))
    deviations = np.where(is_matched, rng.gamma(2.0, 0.05, count), np.nan)
    return Judged(features, is_matched, deviations, int(is_matched.sum()) + count // 10)


@pytest.fixture
def confidence(rng):
    return fit_confidence(draw(rng, 400), num_images=12)


def test_the_fit_is_the_minimum_of_the_penalized_likelihood(rng):
    judged = draw(rng, 300)
    got = fit_confidence(judged, num_images=1)
    standard = (judged.features - np.array(got.center)) / np.array(got.scale)

    def objective(values):
        margins = standard @ values[:-1] + values[-1]
        loss = np.logaddexp(0, np.where(judged.is_matched, -margins, margins)).sum()
        return loss + RIDGE / 2 * (values[:-1] ** 2).sum()

    best = minimize(objective, np.zeros(len(FEATURES) + 1), method="BFGS")
    np.testing.assert_allclose([*got.weights, got.bias], best.x, atol=2e-3)


def test_probabilities_and_margin_hold_on_other_nuclei(rng, confidence):
    fresh = draw(rng, 4000)
    curve = reliability_of(confidence.probabilities(fresh.features), fresh.is_matched)
    assert curve["error"] < 0.05
    assert sum(curve["pixels"]) == 4000
    covered = (fresh.deviations[fresh.is_matched] <= confidence.margin).mean()
    assert abs(covered - COVERAGE) < 0.05


def test_reliability_equals_a_loop(rng):
    probs, right = rng.random(500), rng.random(500) < 0.4
    curve = reliability_of(probs, right)
    error = 0.0
    for index in range(10):
        inside = [i for i in range(500) if index / 10 <= probs[i] < (index + 1) / 10]
        assert curve["pixels"][index] == len(inside)
        assert curve["observed"][index] == pytest.approx(np.mean([right[i] for i in inside]))
        error += abs(np.mean([probs[i] - right[i] for i in inside])) * len(inside) / 500
    assert curve["error"] == pytest.approx(error)


def test_too_few_nuclei_fit_nothing(rng):
    assert fit_confidence(draw(rng, MIN_NUCLEI - 1), num_images=1) is None


def test_files(confidence, tmp_path):
    assert load_confidence(tmp_path) is None
    save_confidence(tmp_path, confidence)
    assert load_confidence(tmp_path) == confidence
    path = tmp_path / CONFIDENCE_FILE
    stored = json.loads(path.read_text())
    for text in ("{", json.dumps(stored | {"weights": []}), json.dumps(stored | {"bias": "x"})):
        path.write_text(text)
        with pytest.raises(CheckpointError, match=CONFIDENCE_FILE):
            load_confidence(tmp_path)
    save_confidence(tmp_path, None)
    assert not path.exists()


def test_thresholds_reach_what_is_asked_for(rng, confidence):
    judged = draw(np.random.default_rng(77), 400)
    model = fit_confidence(judged, num_images=1)
    probs = model.probabilities(judged.features)

    def kept(**asked):
        return probs >= min_probability(InferConfig(**asked), model)

    assert kept().all()
    assert judged.is_matched[kept(precision=0.9)].mean() >= 0.9
    assert judged.is_matched[kept(recall=0.7)].sum() >= 0.7 * judged.num_truth
    assert kept(recall=0.7).sum() < kept(recall=0.85).sum()
    assert min_probability(InferConfig(min_probability=0.3), model) == 0.3
    with pytest.raises(ConfigError, match=r"infer.recall: the validation images reached 0\.\d+ at most, got 0.999"):
        min_probability(InferConfig(recall=0.999), model)
    with pytest.raises(ConfigError, match="infer.precision: these weights have no confidence"):
        min_probability(InferConfig(precision=0.9), None)


def disc(row, column, radius, shape=(60, 60)):
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    return Extent(0, 0, np.hypot(rows - row, columns - column) < radius)


def test_the_margin_of_a_nucleus_is_the_least_that_holds_the_true_outline():
    predicted, truth = disc(30, 30, 12), disc(32, 29, 13)
    diameter = 2 * np.sqrt(predicted.area / np.pi)
    needed = deviation(predicted, truth) * diameter
    for margin, holds in ((needed + 1e-4, True), (needed - 0.05, False)):
        inner = distance_transform_edt(predicted.inside) > margin
        outer = distance_transform_edt(~predicted.inside) <= margin
        assert (not (inner & ~truth.inside).any() and not (truth.inside & ~outer).any()) == holds
    assert deviation(predicted, predicted) == 0


@pytest.mark.parametrize("center", [(30, 30), (4, 57)])
def test_a_band_is_the_nucleus_without_and_with_its_margin(center):
    nucleus = disc(*center, 10)
    inner, outer = outline_band(nucleus, 3.0, shape=(60, 60))
    expected = distance_transform_edt(np.pad(nucleus.inside, 9))[9:-9, 9:-9] > 3
    expected_outer = distance_transform_edt(~nucleus.inside) <= 3
    for band, mask in ((inner, expected), (outer, expected_outer)):
        drawn = np.zeros((60, 60), bool)
        drawn[band.window] = band.inside
        np.testing.assert_array_equal(drawn, mask)
    assert outline_band(nucleus, 40.0, shape=(60, 60))[0] is None


def test_nuclei_are_judged_one_to_one():
    truth = [disc(15, 15, 8), disc(40, 40, 8)]
    predicted = [disc(15, 16, 8), disc(15, 15, 7.5), disc(41, 40, 8), disc(50, 10, 5)]
    got = judge(np.zeros((4, len(FEATURES))), predicted, truth)
    assert got.is_matched.sum() == 2
    assert got.is_matched[2]
    assert not got.is_matched[3]
    assert np.isnan(got.deviations[~got.is_matched]).all()
    assert join_judged([got, got]).num_truth == 4
