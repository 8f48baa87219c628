"""Dropout from half as many random bits drops what it should."""

import jax.numpy as jnp
import keras
import numpy as np
import pytest

from cervseg_jax.models.layers.dropout import Uint16Dropout


@pytest.mark.parametrize(("rate", "channels"), [(0.05, 32), (0.35, 33), (0.9, 1)])
def test_the_share_and_the_mean_are_right(rate, channels):
    shape = (2, 64, 64, channels)
    found = np.asarray(Uint16Dropout(rate, seed=3)(jnp.ones(shape), training=True))
    dropped = found == 0
    error = 4 * np.sqrt(rate * (1 - rate) / found.size)
    assert abs(dropped.mean() - rate) < error + 2**-16
    np.testing.assert_allclose(found[~dropped], 1 / (1 - rate), rtol=1e-3)
    if channels > 1:  # the two halves of a word are independent
        both = (dropped[..., 0] & dropped[..., 1]).mean()
        assert abs(both - rate**2) < 4 * np.sqrt(rate**2 / dropped[..., 0].size)


def test_calls_differ_and_inference_changes_nothing(rng):
    layer = Uint16Dropout(0.5, seed=0)
    images = jnp.asarray(rng.standard_normal((1, 8, 8, 4), np.float32))
    first, second = (layer(images, training=True) for _ in range(2))
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(layer(images, training=False), images)


def test_it_is_keras_layer_otherwise():
    layer = Uint16Dropout(0.25, seed=0, dtype="mixed_bfloat16", name="drop")
    assert isinstance(layer, keras.layers.Dropout)
    assert layer(jnp.ones((1, 2, 2, 3)), training=True).dtype == jnp.bfloat16
