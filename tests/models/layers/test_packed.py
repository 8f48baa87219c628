"""Packed layers and networks equal plain ones."""

import functools

import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest

from cervseg_jax.models import check_model_args, functionalize
from cervseg_jax.models.build import build_with_layers
from cervseg_jax.models.layers.conv.packed import convolve_packed
from cervseg_jax.models.layers.conv.select import ConvShape, choose_block
from cervseg_jax.models.layers.packed import (
    PackedBatchNormalization,
    PackedConv2D,
    PackedUpsampleConv2x2,
)
from cervseg_jax.models.layers.packed_layers import layers_for
from cervseg_jax.models.layers.packing import Layout, halved, max_pool_packed, pack, tile, unpack
from cervseg_jax.models.layers.upsampling import UpsampleConv2x2
from tests.models.layers.conv.test_cpu import plain, value_and_gradients
from tests.models.test_models import SMALL

TOLERANCE = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 2e-2}
SIZE = (32, 64)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def packed(images, layout):
    groups = layout.split_channels(images)
    return jnp.concatenate([pack(group, layout.block) for group in groups], -1)


@pytest.mark.parametrize(
    "dtype", ["float64", *(pytest.param(name, marks=pytest.mark.slow) for name in TOLERANCE if name != "float64")]
)
@pytest.mark.parametrize(
    ("shape", "kernel_size", "dilation", "block", "groups", "filters"),
    [
        ((2, 13, 48), 9, 3, 8, (5,), 4),
        ((1, 9, 24), 9, 3, 8, (3,), 5),  # images narrower than the kernel
        ((2, 9, 20), 7, 2, 4, (3, 2), 6),
        ((1, 7, 10), 5, 1, 2, (4,), 3),
        ((1, 6, 16), 5, 3, 8, (2, 1, 2), 2),
        ((1, 5, 20), 3, 1, 4, (3,), 4),
        ((1, 3, 16), 1, 1, 8, (4, 2), 1),
    ],
)
def test_values_and_gradients_equal_those_of_xla(shape, kernel_size, dilation, block, groups, filters, dtype, rng):
    layout = Layout(block, groups)
    shapes = ((*shape, layout.channels), (kernel_size, kernel_size, layout.channels, filters), (*shape, filters))
    images, kernel, cotangent = (jnp.asarray(rng.standard_normal(s), dtype) for s in shapes)

    def convolve(images, kernel):
        return unpack(convolve_packed(packed(images, layout), kernel, layout, dilation), Layout(block, (filters,)))

    reference = functools.partial(plain, dilation=dilation)
    results = (value_and_gradients(f, images, kernel, cotangent) for f in (convolve, reference))
    for value, expected_value in zip(*results, strict=True):
        assert value.dtype == expected_value.dtype == dtype
        wide = [np.asarray(x, np.float64) for x in (value, expected_value)]
        np.testing.assert_allclose(*wide, rtol=0, atol=TOLERANCE[dtype] * np.abs(wide[1]).max())


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_pooling_equals_that_of_xla_including_ties(dtype, rng):
    layout, window = Layout(4, (3, 2)), (1, 2, 2, 1)
    images = jnp.asarray(np.maximum(rng.integers(-3, 4, (2, 8, 16, 5)), 0), dtype)
    expected, expected_vjp = jax.vjp(
        lambda images: jax.lax.reduce_window(images, -jnp.inf, jax.lax.max, window, window, "VALID"), images
    )
    actual, actual_vjp = jax.vjp(
        lambda images: unpack(max_pool_packed(packed(images, layout), layout), halved(layout)), images
    )
    np.testing.assert_array_equal(actual, expected)
    cotangent = jnp.asarray(rng.standard_normal(expected.shape), dtype)
    np.testing.assert_array_equal(actual_vjp(cotangent)[0], expected_vjp(cotangent)[0])


def test_batch_norm_takes_statistics_over_the_pixels_of_a_block(rng):
    layout = Layout(4, (3, 2))
    images = rng.standard_normal((2, 6, 8, 5)) * 3 + np.arange(5)
    layer = PackedBatchNormalization(layout=layout, momentum=0.9, epsilon=1e-3, dtype="float64")
    actual = unpack(layer(packed(jnp.asarray(images), layout), training=True), layout)
    mean, variance = images.mean((0, 1, 2)), images.var((0, 1, 2))
    np.testing.assert_allclose(actual, (images - mean) / np.sqrt(variance + 1e-3), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(layer.moving_mean, 0.1 * mean, rtol=1e-12)
    np.testing.assert_allclose(layer.moving_variance, 0.9 + 0.1 * variance, rtol=1e-12)
    inferred = unpack(layer(packed(jnp.asarray(images), layout)), layout)
    expected = (images - 0.1 * mean) / np.sqrt(0.9 + 0.1 * variance + 1e-3)
    np.testing.assert_allclose(inferred, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("block", [1, 4])
def test_upsampling_equals_that_of_the_plain_layer(block, rng):
    layout = Layout(block, (5,))
    images = jnp.asarray(rng.standard_normal((2, 3, 8, 5)))
    reference = UpsampleConv2x2(6, dtype="float64")
    layer = PackedUpsampleConv2x2(6, layout=layout, dtype="float64")
    reference.build(images.shape)
    layer.build((2, 3, 8 // block, 5 * block))
    for variable, same in zip(reference.weights, layer.weights, strict=True):
        values = jnp.asarray(rng.standard_normal(variable.shape))
        variable.assign(values)
        same.assign(values)
    expected = reference(images)
    actual = unpack(layer(pack(images, block)), Layout(2 * block, (6,)))
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-12)


def test_tiled_values_follow_the_groups():
    assert tile(jnp.arange(3.0), Layout(2, (2, 1))).tolist() == [0, 1, 0, 1, 2, 2]


@pytest.mark.parametrize(
    ("shape", "block"),
    [
        (ConvShape(512, 512, 3, 16, 9, 9), 8),
        (ConvShape(256, 256, 64, 32, 7, 7), 4),
        (ConvShape(128, 128, 64, 64, 5, 5), 2),
        (ConvShape(64, 64, 128, 128, 3, 3), 1),
        (ConvShape(512, 516, 3, 16, 9, 9), 4),
        (ConvShape(512, 511, 3, 16, 9, 9), 1),
        (ConvShape(16, 16, 3, 16, 3, 3), 2),  # rows of at least eight blocks
        (ConvShape(512, 512, 3, 16, 2, 2), 1),
    ],
)
def test_blocks_fill_the_lanes(shape, block):
    assert choose_block("tpu", shape) == block
    assert choose_block("xla", shape) == choose_block("cpu", shape) == 1


def network(name, args, backend, policy="float32"):
    keras.utils.set_random_seed(0)
    net = layers_for("float32", backend)
    net.policy = net.float_policy = policy
    return build_with_layers(name, net, SIZE, check_model_args(name, SIZE, args))


def outputs_and_gradients(model, weights, images):
    trainable, fixed = weights

    def loss(trainable, images):
        outputs, state, *_ = model.stateless_call(trainable, fixed, images, training=True)
        outputs = outputs if isinstance(outputs, list) else [outputs]
        return sum(jnp.sum(jnp.sin(3 * logits)) for logits in outputs), (outputs, state)

    (_, (outputs, _)), gradients = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(trainable, images)
    return outputs, gradients


@pytest.mark.parametrize(
    "args",
    [SMALL["unet"][0], pytest.param({**SMALL["unet"][0], "levels": 4, "activation": "mish"}, marks=pytest.mark.slow)],
)
def test_gradients_of_a_whole_network_are_the_same(args, rng):
    args = {**args, "dropout_rate": 0.0}
    plain_model, packed_model = (network("unet", args, backend, "float64") for backend in ("xla", "tpu"))
    weights = [
        [jnp.asarray(rng.normal(scale=0.2, size=variable.shape)) for variable in variables]
        for variables in (plain_model.trainable_variables, plain_model.non_trainable_variables)
    ]
    images = jnp.asarray(rng.integers(0, 256, (2, *SIZE, 3)), "float64") / 255
    expected, actual = (outputs_and_gradients(m, weights, images) for m in (plain_model, packed_model))
    for value, expected_value in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(value, expected_value, rtol=0, atol=1e-12 * float(jnp.abs(expected_value).max()))


def loss_curve(model, num_steps, rng):
    """Losses of steps of Adam on one batch."""
    images = jnp.asarray(rng.integers(0, 256, (2, *SIZE, 3)), "float64") / 255
    masks = jnp.asarray(rng.random((2, *SIZE, 1)) < 0.3, "float64")
    optimizer = optax.adam(1e-3)

    def loss(trainable, fixed):
        logits, fixed, *_ = model.stateless_call(trainable, fixed, images, training=True)
        return optax.sigmoid_binary_cross_entropy(logits, masks).mean(), fixed

    @jax.jit
    def step(trainable, fixed, state):
        (value, fixed), gradients = jax.value_and_grad(loss, has_aux=True)(trainable, fixed)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(trainable, updates), fixed, state, value

    weights = [
        [jnp.asarray(v.value) for v in group] for group in (model.trainable_variables, model.non_trainable_variables)
    ]
    state, losses = optimizer.init(weights[0]), []
    for _ in range(num_steps):
        *weights, state, value = step(*weights, state)
        losses.append(float(value))
    return losses


@pytest.mark.slow
def test_loss_curves_are_the_same():
    # In float32 those of this network are 2 % apart after 200 steps: rounding grows from step to step.
    args = {**SMALL["unet"][0], "dropout_rate": 0.0}
    curves = [
        loss_curve(network("unet", args, backend, "float64"), 200, np.random.default_rng(0))
        for backend in ("xla", "tpu")
    ]
    np.testing.assert_allclose(*curves, rtol=1e-9)
    assert curves[0][-1] < 0.9 * curves[0][0]


@pytest.mark.parametrize(
    ("name", "args", "num_plain"),
    [
        pytest.param("attention_unet", SMALL["attention_unet"][0], 2, id="attention_unet"),
        pytest.param("multires_unet", SMALL["multires_unet"][0], 1, id="multires_unet", marks=pytest.mark.slow),
        pytest.param("sharp_unet", SMALL["sharp_unet"][0], 0, id="sharp_unet"),
        pytest.param("unet", SMALL["unet"][1], 0, id="unet"),
        pytest.param("u2net", SMALL["u2net"][0], None, id="u2net", marks=pytest.mark.slow),
        pytest.param("unet3plus", SMALL["unet3plus"][0], None, id="unet3plus", marks=pytest.mark.slow),
        pytest.param("basnet", SMALL["basnet"][0], None, id="basnet", marks=pytest.mark.slow),
        pytest.param("efficient_unet", SMALL["efficient_unet"][0], None, id="efficient_unet", marks=pytest.mark.slow),
    ],
)
def test_a_packed_network_has_the_weights_and_predictions_of_a_plain_one(name, args, num_plain, rng):
    plain_model, packed_model = (network(name, args, backend) for backend in ("xla", "tpu"))
    (apply, *values), (packed_apply, *packed_values) = functionalize(plain_model), functionalize(packed_model)
    for tree, packed_tree in zip(values, packed_values, strict=True):
        assert {path: x.shape for path, x in packed_tree.items()} == {path: x.shape for path, x in tree.items()}
    layers = [layer for layer in packed_model._flatten_layers() if isinstance(layer, keras.layers.Conv2D)]
    num_packed = sum(isinstance(layer, PackedConv2D) for layer in layers)
    assert num_packed > 0
    assert num_plain is None or len(layers) - num_packed == num_plain
    images = rng.integers(0, 256, (2, *SIZE, 3), np.uint8)
    for key in (None, jax.random.key(0)) if "dropout_rate" not in args else (None,):
        expected, actual = (jax.jit(forward)(*values, images, key=key) for forward in (apply, packed_apply))
        for value, expected_value in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
            assert value.shape == expected_value.shape
            atol = 1e-3 * float(jnp.abs(expected_value).max()) + 1e-8  # statistics of centered maps are rounding alone
            np.testing.assert_allclose(value, expected_value, rtol=0, atol=atol)
