"""One table for all networks: a new one is covered by its line here."""

import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cervseg_jax.engine.optimizer import make_optimizer
from cervseg_jax.engine.state import create_state
from cervseg_jax.engine.step import StepOptions, make_train_step
from cervseg_jax.errors import ConfigError
from cervseg_jax.losses import LOSSES
from cervseg_jax.models import MODELS, build_abstract, build_model, functionalize
from cervseg_jax.models.encoders import IMAGENET_MEAN, IMAGENET_STD
from cervseg_jax.models.layers.blocks import BATCH_NORM_MOMENTUM
from cervseg_jax.models.layers.upsampling import UpsampleConv2x2

SMALL = {
    "attention_unet": [
        {"base_filters": 4, "levels": 3, "dropout_rate": 0.1},
        {"base_filters": 4, "levels": 3, "dropout_rate": 0.1, "variant": "reference"},
    ],
    "basnet": [{"base_filters": 2}],
    "deeplab_v3plus": [{}],
    "efficient_unet": [{}],
    "efficientnet_b7_unet": [{"encoder": "efficientnet_b0", "base_filters": 4}],
    "efficientnet_lite0_unet": [{"filters": [4, 4, 8, 8, 8]}],
    "multires_unet": [{"base_filters": 4, "levels": 3}],
    "sharp_unet": [{"filters": [4, 8], "bottom_filters": 16}],
    "swin_unet": [{"embed_width": 8, "num_heads": [2, 4], "window": [4, 4]}],
    "trans_unet": [
        {"embed_width": 16, "mlp_width": 32, "num_heads": 2, "num_blocks": 2},
        {
            "filters": [4, 8, 16],
            "embed_width": 16,
            "mlp_width": 32,
            "num_heads": 2,
            "num_blocks": 2,
            "variant": "reference",
        },
    ],
    "u2net": [{"base_filters": 16, "levels": 2}],
    "unet": [
        {"base_filters": 4, "levels": 3, "kernel_size": 7, "dilation": 3, "dropout_rate": 0.1},
        {"base_filters": 4, "levels": 3, "batch_norm": True, "activation": "mish", "dropout_rate": 0.1},
    ],
    "unet3plus": [{"base_filters": 2}],
    "xception_like_unet": [{"base_filters": 4, "levels": 2}],
}
DEEP = (
    "basnet",
    "deeplab_v3plus",
    "efficient_unet",
    "efficientnet_b7_unet",
    "efficientnet_lite0_unet",
    "multires_unet",
    "trans_unet-0",
    "u2net",
)
"""Networks of hundreds of layers, whose gradients compile for long. The quick run builds most of them."""
CASES = [
    pytest.param(name, args, id=f"{name}-{number}")
    for name, variants in SMALL.items()
    for number, args in enumerate(variants)
]
GRADIENT_CASES = [
    pytest.param(*case.values, id=case.id, marks=pytest.mark.slow)
    if case.id.startswith((*DEEP, "attention_unet-0", "swin_unet", "trans_unet-1", "unet3plus"))
    else case
    for case in CASES
]
SHAPE_CASES = [
    pytest.param(*case.values, id=case.id, marks=pytest.mark.slow)
    if case.id.startswith(
        ("basnet", "deeplab_v3plus", "efficient_unet", "efficientnet_b7_unet", "efficientnet_lite0_unet")
    )
    else case
    for case in CASES
]
SIZE = (32, 64)


def build(name, args, *, size=SIZE, **options):
    import keras

    keras.utils.set_random_seed(0)
    return build_model(name, image_size=size, args=args, **options)


@pytest.fixture
def images(rng):
    return rng.integers(0, 256, (2, *SIZE, 3), np.uint8)


def test_every_model_is_in_the_table():
    assert set(SMALL) == set(MODELS)


@pytest.mark.parametrize(("name", "args"), SHAPE_CASES)
def test_logits_have_the_images_size_and_paths_are_stable(name, args, rng):
    size = (30, 51)
    images = rng.integers(0, 256, (2, *size, 4), np.uint8)
    apply, params, model_state = functionalize(build(name, args, size=size, num_channels=4, num_maps=2))
    outputs, state = jax.jit(apply)(params, model_state, images)
    for logits in outputs:
        assert logits.shape == (2, *size, 2)
        assert logits.dtype == jnp.float32
        assert jnp.isfinite(logits).all()
    assert not np.allclose(outputs[0][0], outputs[0][1])
    assert (outputs[0] < 0).any() or (outputs[0] > 1).any()  # logits, not probabilities
    assert all(np.array_equal(state[path], model_state[path]) for path in model_state)
    again = build_abstract(name, image_size=size, args=args, num_maps=2)
    assert list(params) == list(again[1])
    assert list(model_state) == list(again[2])
    assert not any("seed" in path for path in (*params, *model_state))


@pytest.mark.parametrize(("name", "args"), GRADIENT_CASES)
def test_a_gradient_reaches_every_parameter_and_steps_lower_the_loss(name, args, images, rng):
    apply, params, model_state = functionalize(build(name, args))
    masks = jnp.asarray(rng.random((2, *SIZE, 1)) < 0.3, jnp.float32)
    valid = jnp.ones(2)

    def loss(params):
        outputs, _ = apply(params, model_state, images, key=jax.random.key(0))
        return sum(LOSSES["bce_dice"](logits, masks, valid) for logits in outputs)

    value_and_gradients = jax.jit(jax.value_and_grad(loss))
    value, gradients = jax.device_get(value_and_gradients(params))  # to NumPy, which compiles nothing per shape
    silent = [path for path, gradient in gradients.items() if not np.abs(gradient).max() > 0]
    assert silent == []
    steepness = float(sum(np.sum(np.square(gradient)) for gradient in gradients.values()))
    expected = 1e-3 * float(value)  # so little that the loss is nearly straight
    lower = {path: np.asarray(params[path]) - expected / steepness * gradient for path, gradient in gradients.items()}
    # BatchNorm over the few pixels of the deepest networks bends the loss and makes it noisy: they reach 0.6 of it.
    assert float(value - value_and_gradients(lower)[0]) == pytest.approx(expected, rel=0.6)


@pytest.mark.parametrize(("name", "args"), GRADIENT_CASES)
def test_bfloat16_is_close_to_float32(name, args, images):
    apply, params, model_state = functionalize(build(name, args))
    (full, *_), _ = jax.jit(apply)(params, model_state, images)
    (low, *_), _ = jax.jit(functionalize(build(name, args, dtype="bfloat16"))[0])(params, model_state, images)
    assert low.dtype == jnp.float32
    difference = np.abs(np.asarray(jax.nn.sigmoid(low) - jax.nn.sigmoid(full)))
    # Narrow attention layers, eight channels wide here, amplify single pixels.
    assert difference.max() < 0.15
    assert difference.mean() < 0.01
    assert np.abs(np.asarray(low - full)).max() > 0  # it really computes differently


@pytest.mark.parametrize(("name", "args"), [case for case in CASES if "dropout_rate" in case.values[1]])
def test_dropout_depends_on_the_key_alone(name, args, images):
    apply, params, model_state = functionalize(build(name, args))
    forward = jax.jit(lambda key: apply(params, model_state, images, key=key)[0][0])
    one, two, three = (forward(jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, two)
    assert not np.allclose(one, three)


def test_padding_inside_changes_nothing_far_from_the_edge(rng):
    args = {"base_filters": 4, "levels": 3}
    whole = rng.integers(0, 256, (1, 64, 64, 3), np.uint8)
    apply, params, model_state = functionalize(build("unet", args, size=(64, 64)))
    cut, *_ = functionalize(build("unet", args, size=(62, 61)))
    want = jax.jit(apply)(params, model_state, whole)[0][0]
    got = jax.jit(cut)(params, model_state, whole[:, 1:63, 1:62])[0][0]
    assert got.shape == (1, 62, 61, 1)
    np.testing.assert_allclose(got[:, 28:36, 28:36], want[:, 29:37, 29:37], atol=1e-4)


def test_frozen_levels_leave_the_trainable_variables():
    args = {"encoder": "efficientnet_b0", "frozen_levels": 2}
    _, params, model_state = build_abstract("efficient_unet", image_size=SIZE, args=args)
    assert not any(path.startswith(("encoder_stem", "encoder_block1", "encoder_block2")) for path in params)
    assert any(path.startswith("encoder_block3") for path in params)
    assert any(path.startswith("encoder_block1") and path.endswith("kernel") for path in model_state)


@pytest.mark.slow
def test_encoder_weights_come_from_a_local_file(tmp_path, rng):
    import keras

    published = keras.applications.EfficientNetB0(include_top=False, weights=None, input_shape=(64, 64, 3))
    # The published file's "variance" is the deviation.
    published.get_layer(index=2).set_weights([np.float32(IMAGENET_MEAN), np.float32(IMAGENET_STD), np.int32(0)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Keras' own, of NumPy 2
        published.save_weights(tmp_path / "b0.weights.h5")
    args = {"encoder_weights": str(tmp_path / "b0.weights.h5")}
    _, params, model_state = functionalize(build("efficient_unet", args))
    np.testing.assert_array_equal(params["encoder_stem_conv/kernel"], published.get_layer("stem_conv").kernel)
    np.testing.assert_allclose(model_state["encoder_normalization/variance"], np.square(IMAGENET_STD), rtol=1e-6)
    with pytest.raises(ConfigError, match="encoder_weights: no such file: .*Keras publishes efficientnetb0_notop.h5"):
        build("efficient_unet", {"encoder_weights": str(tmp_path / "none.h5")})
    with pytest.raises(ConfigError, match="encoder_weights: .* does not fit"):
        build("deeplab_v3plus", args)


@pytest.mark.parametrize("name", ["efficient_unet", "deeplab_v3plus", "unet3plus", "xception_like_unet"])
def test_every_batch_norm_has_the_one_momentum(name):
    import keras

    layers = [
        layer for layer in build(name, {})._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)
    ]
    assert len(layers) > 5
    assert {layer.momentum for layer in layers} == {BATCH_NORM_MOMENTUM}


def test_batch_norm_statistics_move_in_training_alone(images):
    apply, params, model_state = functionalize(build("unet", SMALL["unet"][1]))
    _, trained = jax.jit(apply)(params, model_state, images, key=jax.random.key(0))
    assert all(not np.allclose(trained[path], model_state[path]) for path in model_state)


def test_donated_params_do_not_harm_the_model(images):
    model = build("unet", SMALL["unet"][0])
    apply, params, model_state = functionalize(model)
    want = np.asarray(jax.jit(apply)(params, model_state, images)[0][0])
    optimizer = make_optimizer(clip_value=None)
    step = jax.jit(make_train_step(apply, optimizer, LOSSES["bce"], StepOptions()), donate_argnums=0)
    from cervseg_jax.data.batch import Batch

    batch = Batch(jnp.asarray(images), jnp.zeros((2, *SIZE, 1), jnp.uint8), jnp.ones(2), jnp.arange(2))
    step(create_state(params, model_state, optimizer), batch, jnp.float32(1e-3))
    np.testing.assert_allclose(np.asarray(jax.jit(model)(jnp.asarray(images, jnp.float32))), want, atol=1e-5)


@pytest.mark.parametrize(
    ("args", "count"),
    [
        ({"base_filters": 16, "levels": 8, "kernel_size": 9, "dilation": 3, "dropout_rate": 0.05}, 124_996_849),
        ({"base_filters": 16, "levels": 6, "kernel_size": 3}, 7_775_601),
        ({"base_filters": 16, "levels": 5, "kernel_size": 3}, 1_941_105),
    ],
)
def test_unet_parameter_counts(args, count):
    _, params, model_state = build_abstract("unet", image_size=(512, 512), args=args, dtype="float32", num_maps=1)
    assert sum(math.prod(variable.shape) for variable in (*params.values(), *model_state.values())) == count


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
        ((100, 40), {"levels": 8}, r"multiples of 128; \[100, 40\] is too small to be padded to \[128, 128\]"),
        ((64, 64), {"levels": 1}, "model.args.levels: .*greater than or equal to 2"),
        ((64, 64), {"levels": 6, "dropout_rate": 0.2}, "the dropout rate of the bottom level"),
        ((64, 64), {"dilation": [3, 3]}, "model.args.dilation"),
    ],
)
def test_what_does_not_fit_is_refused(size, args, message):
    with pytest.raises(ConfigError, match=message):
        build_model("unet", image_size=size, args=args)
