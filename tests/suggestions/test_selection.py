"""The greedy choice against a plain loop, and features against the Keras layer that they come from."""

import keras
import numpy as np
import pytest

from cervseg_jax.models import build_model, functionalize
from cervseg_jax.models.embedding import make_features
from cervseg_jax.suggestions.embed import MAX_WINDOWS, windows_of
from cervseg_jax.suggestions.pool import windows_for
from cervseg_jax.suggestions.selection import select


def chosen_by_a_plain_loop(uncertainty, embeddings, known, count):
    every = np.concatenate([embeddings, known])
    scaled = (every - every.mean(axis=0)) / every.std(axis=0)
    points, centers = list(scaled[: len(embeddings)]), list(scaled[len(embeddings) :])
    order = []
    for _ in range(min(count, len(points))):
        best = None
        for index, point in enumerate(points):
            if index in order:
                continue
            near = min((np.sqrt(np.mean((point - center) ** 2)) for center in centers), default=1.0)
            if best is None or uncertainty[index] * near > best[1] + 1e-12:
                best = (index, uncertainty[index] * near, near)
        order.append(best[0])
        centers.append(points[best[0]])
    return order


@pytest.mark.parametrize("num_known", [0, 3])
def test_the_choice_equals_that_of_a_plain_loop(rng, num_known):
    uncertainty, embeddings = rng.uniform(0.1, 1, 30), rng.normal(size=(30, 5))
    known = rng.normal(size=(num_known, 5))
    picks = select(uncertainty, embeddings, known, count=12)
    assert [pick.candidate for pick in picks] == chosen_by_a_plain_loop(uncertainty, embeddings, known, 12)
    assert all(pick.score == pytest.approx(pick.distance * uncertainty[pick.candidate]) for pick in picks)


def test_equal_uncertainty_spreads_the_choice_and_equal_features_rank_by_uncertainty():
    clusters = np.repeat([[0.0, 0], [10, 0], [0, 10]], 5, axis=0)
    picks = select(np.full(15, 0.5), clusters, clusters[:0], count=3)
    assert {pick.candidate // 5 for pick in picks} == {0, 1, 2}
    picks = select(np.array([0.1, 0.9, 0.5]), np.zeros((3, 2)), np.ones((1, 2)), count=1)
    assert picks[0].candidate == 1


def test_flagged_images_come_first_and_all_are_taken_where_there_are_few():
    flagged = np.array([False, False, True])
    picks = select(np.array([0.9, 0.8, 0.1]), np.eye(3), np.zeros((0, 3)), count=9, come_first=flagged)
    assert [pick.candidate for pick in picks][0] == 2
    assert sorted(pick.candidate for pick in picks) == [0, 1, 2]
    assert select(np.zeros(0), np.zeros((0, 3)), np.zeros((0, 3)), count=2) == []


def test_features_are_the_mean_of_the_deepest_layer(rng):
    args = {"base_filters": 4, "levels": 3}
    model = build_model("unet", image_size=(32, 48), args=args)
    _, params, model_state = functionalize(model)
    images = rng.integers(0, 256, (2, 32, 48, 3), np.uint8)
    features = np.asarray(make_features("unet", image_size=(32, 48), args=args)(params, model_state, images))
    deepest = [layer for layer in model.layers if layer.output.shape[1:3] == (8, 12)][-1]
    # The next layer upsamples what this one returns.
    expected = np.asarray(keras.Model(model.inputs, deepest.output)([images.astype(np.float32)])).mean(axis=(1, 2))
    assert features.shape == (2, 16)
    assert features == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("shape", [(100, 100), (1024, 300), (1025, 300), (3000, 5000), (2000, 64)])
def test_crops_do_not_overlap_and_reach_all_borders(shape):
    windows = windows_for(shape, 512)
    counts = np.zeros(shape, int)
    for window in windows:
        counts[window.slices] += 1
    assert counts.max() == 1
    assert len(windows) == 1 or counts.mean() > 0.5
    for axis in (0, 1):
        covered = counts.any(axis=1 - axis)
        assert covered[0]
        assert covered[-1]


@pytest.mark.parametrize("factor", [None, 1.0, 0.1, 7.0])
def test_windows_have_the_size_of_the_networks_input(factor):
    windows = windows_of(np.zeros((300, 200, 3), np.uint8), (64, 96), factor)
    assert 1 <= len(windows) <= MAX_WINDOWS
    assert {window.shape for window in windows} == {(64, 96, 3)}
