"""The reference implementation's numbers for its U-Net, both variants."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cervseg_jax.data.batch import Batch
from cervseg_jax.engine.optimizer import make_optimizer
from cervseg_jax.engine.state import create_state
from cervseg_jax.engine.step import StepOptions, make_train_step
from cervseg_jax.losses import LOSSES, dice_coef
from cervseg_jax.models import build_abstract
from cervseg_jax.models.layers.blocks import KERAS_DTYPES

ARGS = {"base_filters": 4, "levels": 5, "kernel_size": 9, "dilation": 3, "dropout_rate": 0.05}
VARIANTS = {
    "TensorflowUNet": ARGS | {"input_range": "raw", "batch_norm": False},
    "TensorflowUNet_norm": ARGS | {"input_range": "unit", "batch_norm": True},
}


def creation_order(batch_norm):
    """Our variable paths in the order in which the reference creates its own."""
    blocks = [f"encoder{level}" for level in range(5)]
    for level in (3, 2, 1, 0):
        blocks += [f"decoder{level}_up", f"decoder{level}"]
    paths = []
    for block in blocks:
        convs = [block] if block.endswith("_up") else [f"{block}_conv1", f"{block}_conv2"]
        for conv in convs:
            paths += [f"{conv}/kernel", f"{conv}/bias"]
            if batch_norm and not block.endswith("_up"):
                paths += [f"{conv}_norm/{name}" for name in ("gamma", "beta", "moving_mean", "moving_variance")]
    return [*paths, "head/kernel", "head/bias"]


def load(golden, name, *, without_dropout=False):
    folder = golden / name
    facts = sorted(json.loads((folder / "weights.json").read_text()), key=lambda fact: fact["creation_rank"])
    args = VARIANTS[name] | ({"dropout_rate": 0.0} if without_dropout else {})
    apply, params, model_state = build_abstract("unet", image_size=(64, 64), args=args)
    paths = creation_order(args["batch_norm"])
    assert len(paths) == len(facts) == len(params) + len(model_state)
    keys = dict(zip(paths, (fact["key"] for fact in facts), strict=True))
    stored = np.load(folder / "weights.npz")
    values = {path: jnp.asarray(stored[key]) for path, key in keys.items()}
    assert all(values[path].shape == array.shape for path, array in (params | model_state).items())
    return apply, {p: values[p] for p in params}, {p: values[p] for p in model_state}, keys


@pytest.mark.parametrize("name", VARIANTS)
def test_probabilities(golden, name):
    apply, params, model_state, _ = load(golden, name)
    stored = np.load(golden / name / "io.npz")
    probs = jax.nn.sigmoid(jax.jit(apply)(params, model_state, stored["x"])[0][0])
    np.testing.assert_allclose(probs, stored["y"], atol=1e-4)
    assert float(np.abs(np.asarray(probs) - stored["y"]).max()) < 3e-5  # ten times its own rounding


@pytest.mark.parametrize("name", VARIANTS)
def test_loss_and_gradients(golden, name):
    apply, params, model_state, keys = load(golden, name)
    images, stored = np.load(golden / name / "io.npz")["x"], np.load(golden / name / "grads.npz")
    masks, valid = jnp.asarray(stored["y_true"]), jnp.ones(2)

    def loss(params):
        logits = apply(params, model_state, images)[0][0]
        return LOSSES["bce_dice"](logits, masks, valid), logits

    (value, logits), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    np.testing.assert_allclose(value, stored["loss"], rtol=1e-5)
    np.testing.assert_allclose(dice_coef(logits, masks, valid), stored["dice_coef"], rtol=1e-5)
    for path in params:
        want = stored[keys[path].replace("w", "g")]
        error = np.abs(np.asarray(gradients[path]) - want).max() / np.abs(want).max()
        # The fixture itself is float32: with BatchNorm it agrees with float64 to 5e-5.
        assert error < (1e-4 if "norm" in name else 1e-5), (path, error)


def three_steps(golden, name, file, dtype):
    """Repeats the fixture's training; yields our values, theirs and those before, by path."""
    stored = np.load(golden / name / file)
    rate = float(stored["learning_rate"]) if "learning_rate" in stored else 7e-5
    clip = float(stored["clipvalue"]) if "clipvalue" in stored else 0.5
    apply, params, model_state, keys = load(golden, name, without_dropout=True)
    params, model_state = jax.tree.map(lambda array: jnp.asarray(np.asarray(array), dtype), (params, model_state))
    optimizer = make_optimizer(clip_value=clip)
    step = jax.jit(make_train_step(apply, optimizer, LOSSES["bce_dice"], StepOptions(batch_norm_warmup=False)))
    images = jnp.asarray(np.load(golden / name / "io.npz")["x"])
    batch = Batch(images, jnp.asarray(stored["y_true"]), jnp.ones(2, jnp.float32), jnp.arange(2))
    state, seen = create_state(params, model_state, optimizer), []
    for _ in range(3):
        state, metrics = step(state, batch, jnp.float32(rate))
        seen.append((float(metrics.loss), float(metrics.dice_coef)))
    np.testing.assert_allclose(seen, stored["train_loss_and_dice_coef_before_each_step"], rtol=2e-5)
    before = params | model_state
    for path, value in (state.params | state.model_state).items():
        yield path, np.asarray(value), stored[f"s3_{keys[path]}"], np.asarray(before[path])


@pytest.mark.parametrize(
    ("name", "file"),
    [
        pytest.param("TensorflowUNet", "adam3.npz", marks=pytest.mark.slow),  # the next test has it in float32
        pytest.param("TensorflowUNet", "adam3_strongclip.npz", marks=pytest.mark.slow),
        ("TensorflowUNet_norm", "adam3.npz"),
    ],
)
def test_three_adam_steps(golden, name, file, monkeypatch):
    # In float64: Adam turns the rounding of a gradient near zero into a whole step, so that in float32 the sums'
    # order on this machine, and not our formulas, would decide on a few elements.
    monkeypatch.setitem(KERAS_DTYPES, "float32", "float64")
    with jax.enable_x64(True):
        for path, ours, theirs, before in three_steps(golden, name, file, jnp.float64):
            assert np.linalg.norm(ours - theirs) < 1e-5 * np.linalg.norm(theirs), path
            if np.linalg.norm(theirs - before) > 0:
                moved = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs - before)
                assert moved < 1e-2, (path, moved)  # the movement itself agrees, not just the weights


def test_three_adam_steps_in_float32(golden):
    for path, ours, theirs, _ in three_steps(golden, "TensorflowUNet", "adam3.npz", jnp.float32):
        assert np.abs(ours - theirs).max() < 1e-5 * np.abs(theirs).max(), path
