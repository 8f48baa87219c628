"""Depthwise convolutions as sums of shifted images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cervseg_jax.models.layers.conv.depthwise import DepthwiseConv, shifted_depthwise
from cervseg_jax.models.layers.conv.select import choose_depthwise


def _xla(images, kernel, *, stride, dilation, same):
    return jax.lax.conv_general_dilated(
        images,
        kernel.transpose(0, 1, 3, 2),
        (stride, stride),
        "SAME" if same else "VALID",
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=images.shape[-1],
    )


@pytest.mark.parametrize(
    ("size", "taps", "stride", "dilation", "same"),
    [
        ((12, 16), 3, 1, 1, True),
        ((13, 15), 3, 2, 1, True),
        ((12, 16), 5, 2, 1, True),
        ((13, 17), 5, 1, 1, False),
        ((14, 18), 3, 2, 1, False),
        ((16, 13), 3, 1, 3, True),
    ],
)
def test_equals_the_grouped_convolution_with_both_gradients(rng, size, taps, stride, dilation, same):
    settings = {"stride": stride, "dilation": dilation, "same": same}
    with jax.enable_x64(True):
        images, kernel = jnp.asarray(rng.normal(size=(2, *size, 6))), jnp.asarray(rng.normal(size=(taps, taps, 6, 1)))
        expected, expected_vjp = jax.vjp(lambda x, k: _xla(x, k, **settings), images, kernel)
        actual, actual_vjp = jax.vjp(lambda x, k: shifted_depthwise(x, k, **settings), images, kernel)
        np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-12)
        gradient = jnp.asarray(rng.normal(size=expected.shape))
        for ours, theirs in zip(actual_vjp(gradient), expected_vjp(gradient), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-11, atol=1e-11)


def test_the_layer_is_that_of_keras_on_every_backend(rng):
    images = jnp.asarray(rng.normal(size=(1, 9, 11, 4)), jnp.float32)
    layers = [DepthwiseConv(3, strides=2, padding="valid", use_bias=False, backend=name) for name in ("xla", "cpu")]
    for layer in layers:
        layer.build(images.shape)
    layers[1].set_weights([np.asarray(variable.value) for variable in layers[0].weights])
    np.testing.assert_allclose(layers[1](images), layers[0](images), atol=1e-6)
    assert "backend" not in layers[1].get_config()


def test_large_kernels_and_other_backends_keep_xla():
    assert choose_depthwise("cpu", (3, 3)) == "cpu"
    assert choose_depthwise("cpu", (7, 7)) == "xla"
    assert choose_depthwise("xla", (3, 3)) == "xla"
