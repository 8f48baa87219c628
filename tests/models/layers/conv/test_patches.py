"""The convolution of small images equals XLA's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cervseg_jax.models.layers.conv.patches import convolve_patches


def plain(images, kernel, dilation):
    return jax.lax.conv_general_dilated(
        images, kernel, (1, 1), "SAME", rhs_dilation=(dilation, dilation), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 2), (4, 3), (8, 8)])
@pytest.mark.parametrize(("size", "dilation"), [(3, 1), (3, 2), (5, 1)])
def test_values_and_gradients_equal_those_of_xla_in_float64(height, width, size, dilation, rng):
    images = rng.standard_normal((2, height, width, 5))
    kernel, cotangent = rng.standard_normal((size, size, 5, 7)), rng.standard_normal((2, height, width, 7))
    with jax.enable_x64(True):
        results = []
        for convolve in (convolve_patches, plain):
            value, pullback = jax.vjp(
                functools.partial(convolve, dilation=dilation), *map(jnp.asarray, (images, kernel))
            )
            results.append((value, *pullback(jnp.asarray(cotangent))))
        for actual, expected in zip(*results, strict=True):
            np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-12)


def test_bfloat16_is_summed_in_float32(rng):
    images, kernel = (
        jnp.asarray(rng.standard_normal(shape), jnp.bfloat16) for shape in ((2, 4, 4, 256), (3, 3, 256, 8))
    )
    actual = convolve_patches(images, kernel, 1)
    expected = convolve_patches(images.astype(jnp.float32), kernel.astype(jnp.float32), 1)
    assert actual.dtype == jnp.bfloat16
    np.testing.assert_allclose(actual.astype(jnp.float32), expected, rtol=2**-8, atol=1e-3)
