"""The formulation for CPUs equals XLA's pooling, ties included, and is taken where it should be."""

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest

from cervseg_jax.models.layers import pooling
from cervseg_jax.models.layers.backend import formulation_for
from cervseg_jax.models.layers.pooling import BlockMaxPool, max_of_blocks
from cervseg_jax.runtime.mesh import make_mesh
from cervseg_jax.schema import MeshConfig


def plain(images, size):
    window = (1, size, size, 1)
    return jax.lax.reduce_window(images, -jnp.inf, jax.lax.max, window, window, "VALID")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("shape", "size"), [((2, 8, 12, 5), 2), ((1, 16, 8, 3), 4), ((2, 9, 6, 2), 3)])
def test_values_and_gradients_are_those_of_xla(shape, size, dtype, rng):
    images = jnp.asarray(np.maximum(rng.integers(-3, 4, shape), 0), dtype)  # most blocks have several maxima
    found, found_back = jax.vjp(lambda given: max_of_blocks(given, size), images)
    wanted, wanted_back = jax.vjp(lambda given: plain(given, size), images)
    np.testing.assert_array_equal(found, wanted)
    cotangent = jnp.asarray(rng.standard_normal(found.shape), dtype)
    np.testing.assert_array_equal(found_back(cotangent)[0], wanted_back(cotangent)[0])


@pytest.mark.parametrize(("height", "is_taken"), [(6, True), (7, False)])
def test_it_is_taken_on_one_cpu_where_blocks_cover_the_image(height, is_taken, rng, monkeypatch):
    taken = []
    monkeypatch.setattr(pooling, "max_of_blocks", lambda *given: taken.append(given) or max_of_blocks(*given))
    images = rng.standard_normal((1, height, 4, 2), np.float32)
    theirs = keras.layers.MaxPooling2D(2)(images)
    np.testing.assert_array_equal(BlockMaxPool(2)(images), theirs)
    assert not taken
    with formulation_for(make_mesh(MeshConfig(), batch_size=1)):
        np.testing.assert_array_equal(BlockMaxPool(2)(images), theirs)
    assert bool(taken) is is_taken
