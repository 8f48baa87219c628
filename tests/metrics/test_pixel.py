import jax.numpy as jnp
import numpy as np
import pytest

from cervseg_jax.metrics.pixel import METRICS, SUMMARY_NAMES, Counts, dice, pixel_counts, summarize


def counts_of(predicted, actual):
    logits = jnp.asarray(np.where(predicted, 2.0, -2.0), jnp.float32)[..., None]
    return Counts(*np.asarray(pixel_counts(logits, jnp.asarray(actual, jnp.float32)[..., None])).T)


def set_scores(predicted, actual):
    """The same scores from sets of pixels, as the textbooks define them."""
    p, a = set(np.flatnonzero(predicted)), set(np.flatnonzero(actual))
    size = predicted.size
    return {
        "dice": 2 * len(p & a) / (len(p) + len(a)),
        "iou": len(p & a) / len(p | a),
        "precision": len(p & a) / len(p),
        "recall": len(p & a) / len(a),
        "accuracy": (len(p & a) + size - len(p | a)) / size,
    }


def test_equal_to_scores_of_pixel_sets(rng):
    predicted, actual = rng.random((5, 9, 7)) < 0.5, rng.random((5, 9, 7)) < 0.4
    counts = counts_of(predicted, actual)
    for index in range(5):
        for name, want in set_scores(predicted[index], actual[index]).items():
            assert METRICS[name](counts)[index] == pytest.approx(want, abs=1e-12), name


def test_mean_and_pooled_differ_as_they_should(rng):
    predicted, actual = rng.random((4, 9, 7)) < 0.5, rng.random((4, 9, 7)) < 0.4
    predicted[0], actual[0] = actual[0], actual[0]
    summary = summarize(counts_of(predicted, actual))
    images = [set_scores(p, a)["dice"] for p, a in zip(predicted, actual, strict=True)]
    assert summary["dice_mean"] == pytest.approx(np.mean(images))
    assert summary["dice_pooled"] == pytest.approx(set_scores(predicted, actual)["dice"])
    assert tuple(summary) == SUMMARY_NAMES


@pytest.mark.parametrize(
    ("predicted", "actual", "want"),
    [(False, False, np.nan), (True, False, 0.0), (False, True, 0.0), (True, True, 1.0)],
)
def test_empty_masks(predicted, actual, want):
    counts = counts_of(np.full((1, 3, 3), predicted), np.full((1, 3, 3), actual))
    for name in ("dice", "iou", "precision", "recall"):
        np.testing.assert_equal(METRICS[name](counts)[0], want, err_msg=name)


def test_undefined_images_are_left_out_of_the_mean():
    counts = Counts(*np.array([[4, 0], [0, 0], [0, 0], [5, 9]]))
    assert summarize(counts)["dice_mean"] == 1.0
    assert np.isnan(summarize(Counts(*np.array([[0], [0], [0], [9]])))["dice_mean"])


def test_threshold_is_inclusive_and_in_probabilities():
    logits = jnp.log(jnp.array([0.2, 0.3, 0.7]) / jnp.array([0.8, 0.7, 0.3])).reshape(1, 3, 1, 1)
    masks = jnp.ones((1, 3, 1, 1))
    assert pixel_counts(logits, masks, threshold=0.25)[0, 0] == 2
    assert pixel_counts(jnp.zeros((1, 3, 1, 1)), masks, threshold=0.5)[0, 0] == 3


def test_pooled_counts_stay_exact_beyond_float32():
    big = np.array([2**24, 1], np.int32)
    zero = np.zeros(2, np.int32)
    counts = Counts(big, np.array([1, 0], np.int32), zero, zero)
    assert summarize(counts)["dice_pooled"] == (2 * (2**24 + 1)) / (2 * (2**24 + 1) + 1)
    assert dice(counts).dtype == np.float64
