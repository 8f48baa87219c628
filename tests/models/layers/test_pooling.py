"""Max pooling for CPUs equals XLA's, including ties, and is used where it should be."""

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest

from cervseg_jax.models.layers import pooling
from cervseg_jax.models.layers.pooling import BlockMaxPool, max_of_blocks


def plain(images, size):
    window = (1, size, size, 1)
    return jax.lax.reduce_window(images, -jnp.inf, jax.lax.max, window, window, "VALID")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("shape", "size"), [((2, 8, 12, 5), 2), ((1, 16, 8, 3), 4), ((2, 9, 6, 2), 3)])
def test_values_and_gradients_are_those_of_xla(shape, size, dtype, rng):
    images = jnp.asarray(np.maximum(rng.integers(-3, 4, shape), 0), dtype)  # most blocks have several maxima
    pooled_shape = (shape[0], shape[1] // size, shape[2] // size, shape[3])
    cotangent = jnp.asarray(rng.standard_normal(pooled_shape), dtype)

    def value_and_gradient(pool):
        def compute(images, cotangent):
            value, pullback = jax.vjp(lambda images: pool(images, size), images)
            return value, *pullback(cotangent)

        return jax.jit(compute)(images, cotangent)

    for actual, expected in zip(value_and_gradient(max_of_blocks), value_and_gradient(plain), strict=True):
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize(("height", "is_used"), [(6, True), (7, False)])
def test_it_is_used_for_the_backend_cpu_where_blocks_cover_the_image(height, is_used, rng, monkeypatch):
    calls = []
    monkeypatch.setattr(pooling, "max_of_blocks", lambda *args: calls.append(args) or max_of_blocks(*args))
    images = rng.standard_normal((1, height, 4, 2), np.float32)
    expected = keras.layers.MaxPooling2D(2)(images)
    np.testing.assert_array_equal(BlockMaxPool(2)(images), expected)
    assert not calls
    np.testing.assert_array_equal(BlockMaxPool(2, backend="cpu")(images), expected)
    assert bool(calls) is is_used
