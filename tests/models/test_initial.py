"""Initial weights: the same distributions as Keras' own, drawn by NumPy."""

import jax
import keras
import numpy as np
import pytest

from cervseg_jax.models import MODELS, build_abstract, build_model, functionalize
from cervseg_jax.models.initial import NUMPY_INITIALIZERS, NumpyGlorotUniform, NumpyHeNormal, NumpyVarianceScaling
from tests.models.test_models import SMALL

PAIRS = [
    (NumpyGlorotUniform(seed=1), keras.initializers.GlorotUniform(seed=2)),
    (NumpyHeNormal(seed=3), keras.initializers.HeNormal(seed=4)),
    *[
        (kind(2.0, "fan_out", distribution, 5) for kind in (NumpyVarianceScaling, keras.initializers.VarianceScaling))
        for distribution in ("truncated_normal", "uniform")
    ],
]


@pytest.mark.parametrize("pair", [tuple(pair) for pair in PAIRS], ids=["glorot", "he", "scaling", "scaling_uniform"])
@pytest.mark.parametrize("shape", [(3, 3, 40, 80), (200, 150)])
def test_distributions_equal_those_of_keras(pair, shape):
    ours, theirs = (np.asarray(initializer(shape)) for initializer in pair)
    assert ours.dtype == np.float32
    quantiles = np.linspace(0, 1, 11)
    spread = theirs.std()
    np.testing.assert_allclose(np.quantile(ours, quantiles), np.quantile(theirs, quantiles), atol=0.04 * spread)
    np.testing.assert_allclose(ours.std(), spread, rtol=0.02)


def test_a_seed_decides_the_values():
    one, again, other = (
        np.asarray(build_with_seed(seed).get_layer("encoder0_conv1").kernel.value) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, again)
    assert not np.allclose(one, other)


def test_layers_of_one_shape_differ():
    model = build_with_seed(0)
    kernels = [np.asarray(model.get_layer(f"decoder{level}_up").kernel.value).ravel()[:8] for level in (0, 1)]
    assert not np.allclose(*kernels)


@pytest.mark.parametrize("name", ["unet", "efficient_unet", "xception_like_unet"])
def test_every_kernel_is_drawn_so(name):
    assert name in MODELS
    model = build_model(name, image_size=(32, 32), args={})
    drawn = [
        initializer
        for layer in model._flatten_layers()
        for key in ("kernel_initializer", "depthwise_initializer", "pointwise_initializer")
        if isinstance(initializer := getattr(layer, key, None), keras.initializers.VarianceScaling)
    ]
    assert len(drawn) >= 10
    assert all(type(initializer) in NUMPY_INITIALIZERS.values() for initializer in drawn)


def build_with_seed(seed):
    keras.utils.set_random_seed(seed)
    return build_model("unet", image_size=(32, 32), args={"base_filters": 4, "levels": 3})


@pytest.mark.parametrize("name", ["unet", "sharp_unet", "trans_unet"])
def test_an_abstract_network_has_the_paths_and_shapes_of_a_real_one(name):
    args = SMALL[name][0]
    _, params, model_state = functionalize(build_model(name, image_size=(32, 32), args=args))
    apply, *shapes = build_abstract(name, image_size=(32, 32), args=args)
    for real, abstract in zip((params, model_state), shapes, strict=True):
        assert list(real) == list(abstract)
        assert {path: value.shape for path, value in real.items()} == {k: v.shape for k, v in abstract.items()}
    (logits, *_), _ = jax.eval_shape(apply, *shapes, np.zeros((2, 32, 32, 3), np.uint8))
    assert logits.shape == (2, 32, 32, 1)
