"""The formulation for CPUs equals XLA's convolution, and is taken where it should be."""

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest

from cervseg_jax.models import build_model, functionalize
from cervseg_jax.models.layers import convolution
from cervseg_jax.models.layers.backend import formulation_for
from cervseg_jax.models.layers.convolution import SameConv2D, convolve_on_cpu, kernel_gradient
from cervseg_jax.runtime.mesh import make_mesh
from cervseg_jax.schema import MeshConfig


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
    monkeypatch.setattr(convolution, "BLOCK_VALUES", block_values)  # the smaller leaves rows over
    images, kernel, cotangent = arrays(rng, shape, kernel_size, channels, filters)
    found, found_back = jax.vjp(lambda *given: convolve_on_cpu(*given, dilation), images, kernel)
    wanted, wanted_back = jax.vjp(lambda *given: plain(*given, dilation), images, kernel)
    for one, other in zip((found, *found_back(cotangent)), (wanted, *wanted_back(cotangent)), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * float(np.abs(other).max()))


@pytest.mark.parametrize(("channels", "filters"), [(3, 4), (8, 9)])
def test_the_kernels_gradient_equals_a_loop_over_taps(channels, filters, rng):
    given = arrays(rng, (2, 11, 13), 5, channels, filters)
    images, kernel, cotangent = (value.astype(np.float64) for value in given)
    padded = np.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0)))
    wanted = np.zeros_like(kernel)
    for i in range(5):
        for j in range(5):
            wanted[i, j] = np.einsum("byxc,byxf->cf", padded[:, 2 * i : 2 * i + 11, 2 * j : 2 * j + 13], cotangent)
    with jax.enable_x64(True):
        found = kernel_gradient(jnp.asarray(images), jnp.asarray(cotangent), kernel_size=5, dilation=2)
    np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("kernel_size", "share"), [(5, 8 / 10), (7, 11 / 14), (9, 14 / 18)])
def test_large_kernels_multiply_less(kernel_size, share, rng):
    images, kernel, _ = arrays(rng, (1, 128, 96), kernel_size, 32, 32)
    ours, theirs = (
        jax.jit(convolve, static_argnums=2).lower(images, kernel, 1).cost_analysis()["flops"]
        for convolve in (convolve_on_cpu, plain)
    )
    assert share < ours / theirs < 1.1 * share


def test_bfloat16_is_summed_in_float32(rng):
    images, _, cotangent = arrays(rng, (2, 40, 40), 5, 8, 8)
    rounded = [jnp.asarray(value, jnp.bfloat16) for value in (images, cotangent)]
    found = kernel_gradient(*rounded, kernel_size=5, dilation=1)
    wanted = kernel_gradient(*(value.astype(jnp.float32) for value in rounded), kernel_size=5, dilation=1)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4 * float(jnp.abs(wanted).max()))


def test_it_is_taken_on_one_cpu_alone(monkeypatch):
    taken = []
    monkeypatch.setattr(convolution, "convolve_on_cpu", lambda *given: taken.append(given[1].shape) or plain(*given))
    model = build_model("unet", image_size=(32, 32), args={"base_filters": 4, "levels": 3, "kernel_size": 7})
    apply, params, model_state = functionalize(model)
    images = jnp.zeros((8, 32, 32, 3), jnp.uint8)

    def trace():
        jax.eval_shape(lambda: apply(params, model_state, images))  # another function each time: JAX keeps traced ones

    trace()
    with formulation_for(make_mesh(MeshConfig(data=8), batch_size=8)):
        trace()
    assert taken == []
    with formulation_for(make_mesh(MeshConfig(), batch_size=8)):
        trace()
    assert {shape[0] for shape in taken} == {7, 5, 3}
    assert len(taken) == 10


@pytest.mark.parametrize(
    ("images", "kernel", "is_slow"),
    [
        ((2, 64, 64, 3), (5, 5, 3, 4), True),
        ((2, 64, 64, 8), (3, 3, 8, 4), True),
        ((2, 64, 64, 3), (3, 3, 3, 4), False),  # few channels
        ((2, 8, 8, 64), (3, 3, 64, 64), True),
        ((2, 4, 8, 64), (3, 3, 64, 64), False),  # few pixels
        ((2, 64, 64, 64), (1, 1, 64, 64), False),
        ((2, 64, 64, 8), (4, 4, 8, 8), False),
    ],
)
def test_small_kernels_are_taken_where_they_are_slow(images, kernel, is_slow):
    assert convolution._is_slow(images, kernel) is is_slow


@pytest.mark.parametrize("args", [{"strides": 2}, {"groups": 2}, {"padding": "valid"}])
def test_other_convolutions_stay_as_they_are(args, rng):
    given = {"padding": "same", "kernel_initializer": keras.initializers.HeNormal(seed=1), **args}
    ours, theirs = SameConv2D(4, 5, **given), keras.layers.Conv2D(4, 5, **given)
    images = rng.standard_normal((1, 12, 12, 2), np.float32)
    with formulation_for(make_mesh(MeshConfig(), batch_size=1)):
        np.testing.assert_array_equal(ours(images), theirs(images))
