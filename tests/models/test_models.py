"""One table for all networks: a new one is covered by its line here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cervseg_jax.errors import ConfigError
from cervseg_jax.losses import LOSSES
from cervseg_jax.models import MODELS, build_model, functionalize
from cervseg_jax.models.blocks import UpsampleConv2x2, num_params
from cervseg_jax.training.optimizer import make_optimizer
from cervseg_jax.training.state import create_state
from cervseg_jax.training.step import make_train_step

SMALL = {
    "unet": [
        {"base_filters": 4, "levels": 3, "kernel_size": 7, "dilation": 3, "dropout_rate": 0.1},
        {"base_filters": 4, "levels": 3, "batch_norm": True, "activation": "mish", "dropout_rate": 0.1},
    ],
}
CASES = [(name, args) for name, variants in SMALL.items() for args in variants]
SIZE = (32, 48)


def build(name, args, **options):
    return build_model(name, image_size=SIZE, args=args, **options)


@pytest.fixture
def images(rng):
    return rng.integers(0, 256, (2, *SIZE, 3), np.uint8)


def test_every_model_is_in_the_table():
    assert set(SMALL) == set(MODELS)


@pytest.mark.parametrize(("name", "args"), CASES)
def test_logits_have_the_images_size_and_differ_between_images(name, args, images, key):
    apply, params, model_state = functionalize(build(name, args))
    logits, state = apply(params, model_state, images)
    assert logits.shape == (2, *SIZE, 1)
    assert logits.dtype == jnp.float32
    assert jnp.isfinite(logits).all()
    assert not np.allclose(logits[0], logits[1])
    assert (logits < 0).any()  # logits, not probabilities
    assert all(np.array_equal(state[path], model_state[path]) for path in model_state)


@pytest.mark.parametrize(("name", "args"), CASES)
def test_paths_are_stable_over_builds(name, args):
    first, second = (functionalize(build(name, args)) for _ in range(2))
    assert list(first[1]) == list(second[1])
    assert list(first[2]) == list(second[2])
    assert not any("seed" in path for path in (*first[1], *first[2]))


@pytest.mark.parametrize(("name", "args"), CASES)
def test_a_gradient_reaches_every_parameter_and_steps_lower_the_loss(name, args, images, rng):
    apply, params, model_state = functionalize(build(name, args))
    masks = jnp.asarray(rng.random((2, *SIZE, 1)) < 0.3, jnp.float32)
    valid = jnp.ones(2)

    def loss(params):
        return LOSSES["bce_dice"](apply(params, model_state, images, key=jax.random.key(0))[0], masks, valid)

    value, gradients = jax.jit(jax.value_and_grad(loss))(params)
    silent = [path for path, gradient in gradients.items() if not np.abs(gradient).max() > 0]
    assert silent == []
    lower = jax.tree.map(lambda p, g: p - 1e-3 * g / (1e-6 + jnp.abs(g).max()), params, gradients)
    assert loss(lower) < value


@pytest.mark.parametrize(("name", "args"), CASES)
def test_bfloat16_is_close_to_float32(name, args, images):
    _, params, model_state = functionalize(build(name, args))
    full, _ = functionalize(build(name, args))[0](params, model_state, images)
    low, _ = functionalize(build(name, args, dtype="bfloat16"))[0](params, model_state, images)
    assert low.dtype == jnp.float32
    np.testing.assert_allclose(jax.nn.sigmoid(low), jax.nn.sigmoid(full), atol=0.05)
    assert np.abs(np.asarray(low - full)).max() > 0  # it really computes differently


@pytest.mark.parametrize(("name", "args"), CASES)
def test_dropout_depends_on_the_key_alone(name, args, images):
    apply, params, model_state = functionalize(build(name, args))
    one, two, three = (apply(params, model_state, images, key=jax.random.key(seed))[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, two)
    assert not np.allclose(one, three)


def test_batch_norm_statistics_move_in_training_alone(images):
    apply, params, model_state = functionalize(build("unet", SMALL["unet"][1]))
    _, trained = apply(params, model_state, images, key=jax.random.key(0))
    assert all(not np.allclose(trained[path], model_state[path]) for path in model_state)


def test_donated_params_do_not_harm_the_model(images):
    model = build("unet", SMALL["unet"][0])
    apply, params, model_state = functionalize(model)
    want = np.asarray(apply(params, model_state, images)[0])
    optimizer = make_optimizer(clip_value=None)
    step = jax.jit(make_train_step(apply, optimizer, LOSSES["bce"], seed=0, threshold=0.5), donate_argnums=0)
    from cervseg_jax.data.batch import Batch

    batch = Batch(jnp.asarray(images), jnp.zeros((2, *SIZE, 1), jnp.uint8), jnp.ones(2), jnp.arange(2))
    step(create_state(params, model_state, optimizer), batch, jnp.float32(1e-3))
    np.testing.assert_allclose(np.asarray(model(jnp.asarray(images, jnp.float32))), want, atol=1e-5)


@pytest.mark.parametrize(
    ("args", "count"),
    [
        ({"base_filters": 16, "levels": 8, "kernel_size": 9, "dilation": 3, "dropout_rate": 0.05}, 124_996_849),
        ({"base_filters": 16, "levels": 6, "kernel_size": 3}, 7_775_601),
        ({"base_filters": 16, "levels": 5, "kernel_size": 3}, 1_941_105),
    ],
)
def test_unet_parameter_counts(args, count):
    model = build_model("unet", image_size=(512, 512), args=args)
    assert num_params(model) == count


def test_unet_layers_follow_the_published_table():
    args = {"base_filters": 16, "levels": 4, "kernel_size": 9, "dilation": 3, "dropout_rate": 0.05}
    model = build_model("unet", image_size=(64, 64), args=args)
    for level, (filters, kernel, dilation) in enumerate([(16, 9, 3), (32, 7, 2), (64, 5, 1), (128, 3, 1)]):
        for part in ("encoder", "decoder")[: 2 if level < 3 else 1]:
            for conv in ("conv1", "conv2"):
                layer = model.get_layer(f"{part}{level}_{conv}")
                assert (layer.filters, layer.kernel_size[0], layer.dilation_rate[0]) == (filters, kernel, dilation)
            if level:
                assert model.get_layer(f"{part}{level}_dropout").rate == pytest.approx(0.05 * level)


def test_upsampling_equals_the_transposed_convolution(rng):
    import keras

    x = jnp.asarray(rng.normal(size=(2, 5, 7, 6)), jnp.float32)
    theirs = keras.layers.Conv2DTranspose(4, 2, strides=2, padding="same", bias_initializer="normal")
    want = theirs(x)
    ours = UpsampleConv2x2(4)
    ours.build(x.shape)
    ours.set_weights([np.asarray(weight.value) for weight in theirs.weights])
    np.testing.assert_allclose(ours(x), want, atol=1e-6)


@pytest.mark.parametrize(
    ("size", "args", "message"),
    [
        ((100, 96), {"levels": 4}, r"multiples of 8, got \[100, 96\]; \[96, 96\] would fit"),
        ((64, 64), {"levels": 1}, "model.args.levels: .*greater than or equal to 2"),
        ((64, 64), {"levels": 6, "dropout_rate": 0.2}, "dropout_rate grows"),
        ((64, 64), {"dilation": [3, 3]}, "model.args.dilation"),
    ],
)
def test_what_does_not_fit_is_refused(size, args, message):
    with pytest.raises(ConfigError, match=message):
        build_model("unet", image_size=size, args=args)
