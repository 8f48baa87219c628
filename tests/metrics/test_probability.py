"""Scores of probabilities against plain loops over pixels."""

import numpy as np
import pytest

from cervseg_jax.metrics.pixel import Counts, dice
from cervseg_jax.metrics.probability import (
    NUM_CALIBRATION_BINS,
    THRESHOLD_BINS,
    best_threshold,
    brier,
    calibration_error,
    counts_at,
    join_probability_counts,
    probability_counts,
    reliability,
    soft_dice,
)


@pytest.fixture
def images(rng):
    """Probabilities that lean towards the truth, of several sizes."""
    found = []
    for size in ((20, 30), (7, 5), (16, 16)):
        mask = (rng.random(size) < 0.3).astype(np.uint8)
        found.append((np.clip(rng.beta(1 + 3 * mask, 4 - 3 * mask), 0, 1).astype(np.float32), mask))
    return found


@pytest.fixture
def counts(images):
    return join_probability_counts([probability_counts(probs, mask) for probs, mask in images])


def test_scores_per_image_equal_plain_sums(images, counts):
    for number, (probs, mask) in enumerate(images):
        p, y = probs.astype(float).ravel(), mask.astype(float).ravel()
        assert soft_dice(counts)[number] == pytest.approx(2 * (p * y).sum() / (p.sum() + y.sum()), rel=1e-9)
        assert brier(counts)[number] == pytest.approx(np.mean((p - y) ** 2), rel=1e-9)


def test_calibration_equals_a_loop_over_bins(images, counts):
    p = np.concatenate([probs.astype(float).ravel() for probs, _ in images])
    y = np.concatenate([mask.ravel() for _, mask in images])
    total = 0.0
    for number in range(NUM_CALIBRATION_BINS):
        low, high = number / NUM_CALIBRATION_BINS, (number + 1) / NUM_CALIBRATION_BINS
        inside = (p >= low) & ((p < high) | (number == NUM_CALIBRATION_BINS - 1))
        if inside.any():
            total += inside.sum() * abs(p[inside].mean() - y[inside].mean())
    whole = type(counts)(*(field.sum(axis=0) for field in counts))
    assert float(calibration_error(whole)) == pytest.approx(total / len(p), rel=1e-9)
    curve = reliability(whole)
    assert curve.pixels.sum() == len(p)
    assert np.nansum(curve.observed * curve.pixels) == pytest.approx(y.sum())


def test_a_calibrated_network_has_almost_no_calibration_error_and_a_bold_one_has(rng):
    probs = rng.random((400, 400))
    truth = rng.random((400, 400)) < probs
    assert calibration_error(probability_counts(probs, truth))[0] < 0.01
    assert calibration_error(probability_counts(np.where(probs > 0.5, 0.99, 0.01), truth))[0] > 0.2


@pytest.mark.parametrize("number", [5, 29, 50, 57, 95])
def test_counts_at_a_threshold_are_those_of_the_cut_mask(images, counts, number):
    found = counts_at(counts, number)
    for row, (probs, mask) in enumerate(images):
        predicted, actual = np.floor(probs.astype(float) * 100) >= number, mask > 0
        expected = [(predicted & actual).sum(), (predicted & ~actual).sum(), (~predicted & actual).sum()]
        assert [int(field[row]) for field in found[:3]] == expected


def test_the_best_threshold_is_that_of_the_highest_mean_dice(images, counts):
    means = {}
    for number in THRESHOLD_BINS:
        scores = []
        for probs, mask in images:
            predicted = probs.astype(float) * 100 >= number
            both = (predicted & (mask > 0)).sum()
            scores.append(2 * both / (predicted.sum() + mask.sum()))
        means[number] = np.mean(scores)
    assert means[round(100 * best_threshold(counts))] == pytest.approx(max(means.values()))


def test_equal_thresholds_give_the_middle_one():
    probs, mask = np.array([[0.02, 0.99]]), np.array([[0, 1]])
    assert best_threshold(probability_counts(probs, mask)) == 0.5


def test_empty_truth_has_no_soft_dice_and_the_edges_of_probability_are_counted():
    counts = probability_counts(np.array([[0.0, 1.0]]), np.array([[0, 0]]))
    assert np.isnan(soft_dice(counts)[0])
    assert counts.background[0, 0] == counts.background[0, -1] == 1
    assert brier(counts)[0] == 0.5
    assert dice(counts_at(counts, 50))[0] == 0.0
    assert isinstance(counts_at(counts, 50), Counts)
