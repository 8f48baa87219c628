"""The convolution for CPUs equals XLA's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cervseg_jax.models.layers.conv import cpu, select
from cervseg_jax.models.layers.conv.cpu import convolve_on_cpu, kernel_gradient


@pytest.fixture(params=[False, True], ids=["narrow", "wide"], autouse=True)
def wide_vectors(request, monkeypatch):
    """The rules of either kind of processor, whatever this machine's is."""
    monkeypatch.setattr(select, "has_wide_vectors", lambda: request.param)
    jax.clear_caches()  # of what was traced with the other rules
    return request.param


def plain(images, kernel, dilation):
    return jax.lax.conv_general_dilated(
        images,
        kernel,
        (1, 1),
        "SAME",
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision="highest",
    )


def value_and_gradients(convolve, images, kernel, cotangent):
    """Returns a convolution's value and both gradients, compiled as one program."""

    def compute(images, kernel, cotangent):
        value, pullback = jax.vjp(convolve, images, kernel)
        return value, *pullback(cotangent)

    return jax.jit(compute)(images, kernel, cotangent)


def arrays(rng, shape, kernel_size, channels, filters):
    images = rng.standard_normal((*shape, channels), np.float32)
    kernel = rng.standard_normal((kernel_size, kernel_size, channels, filters), np.float32)
    return images, kernel, rng.standard_normal((*shape, filters), np.float32)


@pytest.mark.parametrize(
    ("shape", "kernel_size", "dilation", "channels", "filters"),
    [
        ((2, 80, 80), 9, 3, 16, 16),  # the published first level: few channels
        ((2, 130, 66), 5, 1, 17, 17),  # neither few channels nor few pixels: XLA's convolution of even and odd rows
        ((1, 65, 66), 5, 1, 3, 17),  # the same of all rows
        ((1, 4, 16), 9, 3, 8, 8),  # even and odd rows of images smaller than the kernel
        ((2, 30, 47), 9, 3, 3, 16),
        ((2, 33, 40), 3, 1, 8, 12),
        ((1, 33, 20), 7, 2, 12, 16),
        ((3, 17, 29), 5, 1, 4, 6),
        ((2, 5, 7), 9, 3, 2, 3),  # images smaller than the kernel
        ((1, 9, 2500), 5, 2, 2, 2),  # a row is more than a block
    ],
)
@pytest.mark.parametrize("block_values", [2**19, 2**13])
def test_values_and_gradients_equal_those_of_xla(
    shape, kernel_size, dilation, channels, filters, block_values, rng, monkeypatch
):
    monkeypatch.setattr(cpu, "BLOCK_VALUES", block_values)  # the smaller leaves rows over
    given = arrays(rng, shape, kernel_size, channels, filters)
    results = (value_and_gradients(functools.partial(f, dilation=dilation), *given) for f in (convolve_on_cpu, plain))
    for value, expected_value in zip(*results, strict=True):
        np.testing.assert_allclose(value, expected_value, rtol=0, atol=1e-5 * float(np.abs(expected_value).max()))


@pytest.mark.parametrize(("channels", "filters"), [(3, 4), (8, 9)])
def test_the_kernels_gradient_equals_a_loop_over_taps(channels, filters, rng):
    float32_arrays = arrays(rng, (2, 11, 13), 5, channels, filters)
    images, kernel, cotangent = (value.astype(np.float64) for value in float32_arrays)
    padded = np.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0)))
    expected = np.zeros_like(kernel)
    for i in range(5):
        for j in range(5):
            expected[i, j] = np.einsum("byxc,byxf->cf", padded[:, 2 * i : 2 * i + 11, 2 * j : 2 * j + 13], cotangent)
    with jax.enable_x64(True):
        actual = kernel_gradient(jnp.asarray(images), jnp.asarray(cotangent), kernel_size=5, dilation=2)
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("kernel_size", "share"), [(5, 8 / 10), (7, 11 / 14), (9, 14 / 18)])
def test_large_kernels_multiply_less(kernel_size, share, rng, wide_vectors):
    share = 1 if wide_vectors and kernel_size == 5 else share
    images, kernel, _ = arrays(rng, (1, 128, 96), kernel_size, 32, 32)
    ours, theirs = (
        jax.jit(convolve, static_argnums=2).lower(images, kernel, 1).cost_analysis()["flops"]
        for convolve in (convolve_on_cpu, plain)
    )
    assert share <= ours / theirs < 1.1 * share


def test_bfloat16_is_summed_in_float32(rng):
    images, _, cotangent = arrays(rng, (2, 40, 40), 5, 8, 8)
    rounded = [jnp.asarray(value, jnp.bfloat16) for value in (images, cotangent)]
    actual = kernel_gradient(*rounded, kernel_size=5, dilation=1)
    expected = kernel_gradient(*(value.astype(jnp.float32) for value in rounded), kernel_size=5, dilation=1)
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4 * float(jnp.abs(expected).max()))
