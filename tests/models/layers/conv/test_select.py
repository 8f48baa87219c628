"""Backend and shape choose the implementation of a convolution."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest

from cervseg_jax.models import backend_for, build_model, functionalize
from cervseg_jax.models.layers.conv import layer as layer_module
from cervseg_jax.models.layers.conv import select
from cervseg_jax.models.layers.conv.cpu import convolve_on_cpu
from cervseg_jax.models.layers.conv.layer import SameConv2D
from cervseg_jax.models.layers.conv.select import CPU_RULES, RULES, ConvShape, choose, choose_cpu_form
from cervseg_jax.runtime.mesh import make_mesh
from cervseg_jax.schema import MeshConfig


def test_tpus_and_a_single_cpu_have_a_backend_of_their_own():
    assert backend_for(make_mesh(MeshConfig(), batch_size=8)) == "cpu"
    assert backend_for(make_mesh(MeshConfig(data=8), batch_size=8)) == "xla"
    for platform, expected in (("tpu", "tpu"), ("gpu", "xla")):
        for size in (1, 8):
            devices = np.array([SimpleNamespace(platform=platform)] * size)
            assert backend_for(SimpleNamespace(devices=devices, size=size)) == expected


@pytest.mark.parametrize(("backend", "sizes"), [("xla", []), ("cpu", [7] * 4 + [5] * 4 + [3] * 2)])
def test_a_network_computes_with_the_implementation_of_its_backend(backend, sizes, monkeypatch):
    computed = []

    def spy(images, kernel, dilation):
        computed.append(kernel.shape[0])
        return convolve_on_cpu(images, kernel, dilation)

    monkeypatch.setattr(layer_module, "convolve_on_cpu", spy)
    args = {"base_filters": 4, "levels": 3, "kernel_size": 7}
    apply, params, model_state = functionalize(build_model("unet", image_size=(32, 32), args=args, backend=backend))
    computed.clear()
    jax.eval_shape(apply, params, model_state, jnp.zeros((8, 32, 32, 3), jnp.uint8))
    assert sorted(computed, reverse=True) == sizes


@pytest.mark.parametrize(
    ("images", "kernel", "implementation"),
    [
        ((2, 64, 64, 3), (5, 5, 3, 4), "cpu"),
        ((2, 64, 64, 8), (3, 3, 8, 4), "cpu"),
        ((2, 64, 64, 3), (3, 3, 3, 4), "xla"),  # few channels
        ((2, 8, 8, 64), (3, 3, 64, 64), "cpu"),
        ((2, 4, 8, 64), (3, 3, 64, 64), "xla"),  # few pixels
        ((2, 64, 64, 64), (1, 1, 64, 64), "xla"),
        ((2, 64, 64, 8), (4, 4, 8, 8), "xla"),
        ((2, 64, 64, 8), (5, 3, 8, 8), "xla"),
    ],
)
def test_small_kernels_are_replaced_where_they_are_slow(images, kernel, implementation):
    assert choose("cpu", ConvShape.of(images, kernel), wide_vectors=False) == implementation
    assert choose("xla", ConvShape.of(images, kernel)) == "xla"


@pytest.mark.parametrize(
    ("shape", "implementation", "form"),
    [
        (ConvShape(256, 256, 16, 16, 9, 9), "cpu", "even_odd_rows"),
        (ConvShape(256, 256, 3, 16, 9, 9), "cpu", "row_pairs"),
        (ConvShape(64, 64, 64, 64, 7, 7), "cpu", "even_odd_rows"),
        (ConvShape(256, 256, 16, 16, 5, 5), "cpu", "row_pairs"),
        (ConvShape(64, 64, 64, 64, 5, 5), "xla", "xla"),
        (ConvShape(256, 256, 16, 16, 3, 3), "cpu", "xla"),
        (ConvShape(128, 128, 32, 32, 3, 3), "xla", "xla"),
        (ConvShape(128, 128, 32, 32, 9, 9, "bfloat16"), "cpu", "xla"),
    ],
)
def test_processors_with_wide_vectors_have_rules_of_their_own(shape, implementation, form):
    assert choose("cpu", shape, wide_vectors=True) == implementation
    assert choose_cpu_form(shape, wide_vectors=True) == form


@pytest.mark.parametrize("wide_vectors", [False, True])
def test_small_images_with_many_channels_are_a_matrix_product(wide_vectors):
    for side, channels, expected in ((2, 2048, True), (8, 128, True), (16, 512, False), (4, 64, False)):
        shape = ConvShape(side, side, channels, channels, 3, 3)
        assert (choose("cpu", shape, wide_vectors=wide_vectors) == "patches") == expected
        assert choose("xla", shape, wide_vectors=wide_vectors) == "xla"
    layer = SameConv2D(128, 3, padding="same", backend="cpu")
    layer.build((None, 4, 4, 128))
    images = np.random.default_rng(0).standard_normal((2, 4, 4, 128), np.float32)
    expected = keras.layers.Conv2D.convolution_op(layer, jnp.asarray(images), layer.kernel) + layer.bias
    np.testing.assert_allclose(layer(images), expected, rtol=0, atol=1e-5)


def test_the_processor_is_that_of_this_machine(monkeypatch):
    shape = ConvShape(64, 64, 64, 64, 5, 5)
    for wide in (False, True):
        monkeypatch.setattr(select, "has_wide_vectors", lambda wide=wide: wide)
        assert choose("cpu", shape) == choose("cpu", shape, wide_vectors=wide)
        assert choose_cpu_form(shape) == choose_cpu_form(shape, wide_vectors=wide)


@pytest.mark.parametrize(
    ("shape", "form"),
    [
        (ConvShape(512, 512, 16, 16, 9, 9), "even_odd_rows"),
        (ConvShape(512, 512, 3, 16, 9, 9), "row_pairs"),
        (ConvShape(512, 512, 3, 32, 9, 9), "xla"),
        (ConvShape(32, 32, 3, 32, 9, 9), "row_pairs"),
        (ConvShape(512, 512, 16, 16, 3, 3), "xla"),
        (ConvShape(512, 512, 16, 16, 9, 9, "bfloat16"), "xla"),
    ],
)
def test_forms_for_cpus(shape, form):
    assert choose_cpu_form(shape, wide_vectors=False) == form


def test_every_rule_names_its_measurement():
    assert all(rule.measured for rule in (*RULES, *CPU_RULES))


@pytest.mark.parametrize("args", [{"strides": 2}, {"groups": 2}, {"padding": "valid"}])
def test_other_convolutions_stay_as_they_are(args, rng):
    options = {"padding": "same", "kernel_initializer": keras.initializers.HeNormal(seed=1), **args}
    images = rng.standard_normal((1, 12, 12, 2), np.float32)
    same, plain = SameConv2D(4, 5, backend="cpu", **options), keras.layers.Conv2D(4, 5, **options)
    np.testing.assert_array_equal(same(images), plain(images))


def test_the_backend_is_no_part_of_the_config():
    layers = [SameConv2D(4, 5, backend=backend, name="conv") for backend in ("xla", "cpu")]
    assert layers[0].get_config() == layers[1].get_config()
    assert SameConv2D.from_config(layers[1].get_config()).backend == "xla"
