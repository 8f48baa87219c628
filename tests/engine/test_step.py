import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cervseg_jax.data.batch import Batch, Element, batch_sharding, collate
from cervseg_jax.data.samples import Sample
from cervseg_jax.engine.optimizer import make_optimizer, scale_by_adam_epsilon_hat
from cervseg_jax.engine.state import create_state
from cervseg_jax.engine.step import (
    StepOptions,
    check_lr_multipliers,
    make_eval_step,
    make_train_step,
    objective,
    stream_key,
)
from cervseg_jax.errors import ConfigError
from cervseg_jax.heads import num_maps
from cervseg_jax.losses import LOSSES
from cervseg_jax.models import build_model, functionalize
from cervseg_jax.runtime import mesh as sharding
from cervseg_jax.runtime.mesh import make_mesh, replicated, require_devices, state_sharding, to_host
from cervseg_jax.schema import MeshConfig, RuntimeConfig
from tests.helpers import ROOT

SIZE = (32, 48)
ARGS = {"base_filters": 4, "levels": 3, "kernel_size": 9, "dilation": 3, "dropout_rate": 0.1, "batch_norm": True}


@pytest.fixture(scope="module")
def network():
    import keras

    keras.utils.set_random_seed(0)
    return functionalize(build_model("unet", image_size=SIZE, args=ARGS))


@pytest.fixture
def parts(network, rng):
    apply, params, model_state = network
    batch = Batch(
        rng.integers(0, 256, (8, *SIZE, 3), np.uint8),
        (rng.random((8, *SIZE, 1)) < 0.3).astype(np.uint8),
        np.ones(8, np.float32),
        np.arange(8, dtype=np.int32),
    )
    optimizer = make_optimizer(clip_value=0.5)
    return apply, optimizer, create_state(params, model_state, optimizer), batch


def run(parts, mesh, steps=3, rules=StepOptions(seed=1), loss="bce_dice"):  # noqa: B008 (immutable)
    apply, optimizer, state, batch = parts
    everywhere, spread, places = replicated(mesh), batch_sharding(mesh), state_sharding(mesh, state)
    step = jax.jit(
        make_train_step(apply, optimizer, LOSSES[loss], rules),
        in_shardings=(places, spread, everywhere),
        out_shardings=(places, everywhere),
    )
    state, losses = jax.device_put(state, places), []
    for _ in range(steps):
        state, metrics = step(state, jax.device_put(batch, spread), np.float32(1e-3))
        losses.append(float(metrics.loss))
    assert step._cache_size() == 1
    return state, losses, np.asarray(metrics.counts)


@pytest.mark.parametrize(
    "shape",
    [
        (2, 2, 2),
        *(
            pytest.param(shape, marks=pytest.mark.slow)
            for shape in [(8, 1, 1), (2, 1, 4), (4, 1, 2), (1, 1, 8), (1, 8, 1)]
        ),
    ],
)
def test_eight_devices_equal_one(parts, shape, monkeypatch):
    monkeypatch.setattr(sharding, "MIN_SHARDED_SIZE", 64)
    one, losses, counts = run(parts, make_mesh(MeshConfig(), batch_size=8))
    mesh = make_mesh(MeshConfig(data=shape[0], fsdp=shape[1], spatial=shape[2]), batch_size=8)
    many, other, other_counts = run(parts, mesh)
    held = {leaf.addressable_shards[0].data.size / leaf.size for leaf in jax.tree.leaves(many)}
    assert held == {1, 1 / shape[1]}
    largest = max(one.params, key=lambda path: one.params[path].size)
    # Adam makes whole steps of gradients that are rounding; most weights have others.
    assert np.abs(to_host(many.params[largest]) - one.params[largest]).mean() < 1e-5
    np.testing.assert_allclose(other, losses, rtol=2e-5)
    assert np.abs(counts - other_counts).max() <= 3  # pixels at the threshold
    for path, value in one.model_state.items():
        # Which rounding differs depends on the processor: up to 1.2e-4 was seen.
        np.testing.assert_allclose(many.model_state[path], value, rtol=3e-4, atol=1e-5, err_msg=path)


@pytest.mark.parametrize("num_parts", [2, 4])
def test_a_batch_in_parts_has_the_gradient_of_the_whole(rng, num_parts):
    """Without BatchNorm and dropout, and for a loss that is a mean over images; one image of the eight is padding."""
    import keras

    keras.utils.set_random_seed(0)
    args = {"base_filters": 4, "levels": 3}
    apply, params, model_state = functionalize(build_model("unet", image_size=SIZE, args=args))
    valid = np.ones(8, np.float32)
    valid[5] = 0
    batch = Batch(
        rng.integers(0, 256, (8, *SIZE, 3), np.uint8),
        (rng.random((8, *SIZE, 1)) < 0.3).astype(np.uint8),
        valid,
        np.arange(8, dtype=np.int32),
    )
    sgd = optax.identity()
    given = (apply, sgd, create_state(params, model_state, sgd), batch)
    mesh = make_mesh(MeshConfig(data=2), batch_size=8)
    whole, losses, counts = run(given, mesh, steps=1, loss="bce")
    parts, other, other_counts = run(
        given, mesh, steps=1, loss="bce", rules=StepOptions(seed=1, grad_accum_steps=num_parts)
    )
    assert losses == pytest.approx(other, rel=1e-6)
    np.testing.assert_array_equal(counts, other_counts)
    for path, value in whole.params.items():
        moved = np.abs(value - params[path]).max()
        np.testing.assert_allclose(parts.params[path], value, atol=1e-3 * moved + 1e-9, err_msg=path)


def test_recomputing_keeps_less_and_computes_the_same(parts):
    apply, optimizer, state, batch = parts
    batch = jax.tree.map(jnp.asarray, batch)
    results, kept = [], []
    for remat in (False, True):
        rules = StepOptions(remat=remat)
        step = jax.jit(make_train_step(apply, optimizer, LOSSES["bce_dice"], rules))
        results.append(step(state, batch, jnp.float32(1e-3))[1])

        def pullback(params, rules=rules):
            values = (state.model_state, batch, jax.random.key(0))
            return jax.vjp(lambda p: objective(apply, LOSSES["bce_dice"], rules, p, *values)[0], params)[1]

        kept.append(
            sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(jax.eval_shape(pullback, state.params)))
        )
    assert float(results[0].loss) == pytest.approx(float(results[1].loss), rel=1e-6)
    assert float(results[0].gradient_norm) == pytest.approx(float(results[1].gradient_norm), rel=1e-4)
    assert kept[1] < 0.6 * kept[0], kept


def test_norms_are_those_of_optax(parts):
    apply, _, state, batch = parts
    batch = jax.tree.map(jnp.asarray, batch)
    sgd = optax.identity()
    given = create_state(state.params, state.model_state, sgd)
    after, metrics = jax.jit(make_train_step(apply, sgd, LOSSES["bce"], StepOptions()))(given, batch, np.float32(1.0))
    moved = jax.tree.map(lambda new, old: new - old, after.params, given.params)
    total = sum(float(jnp.square(value).sum()) for value in moved.values()) ** 0.5
    assert float(metrics.gradient_norm) == pytest.approx(total, rel=1e-4)
    squares = sum(float(np.square(value).sum()) for value in given.params.values())
    assert float(metrics.param_norm) == pytest.approx(squares**0.5, rel=1e-5)


@pytest.mark.slow
def test_running_statistics_follow_fast_at_first(parts):
    apply, optimizer, state, batch = parts
    batch = jax.tree.map(jnp.asarray, batch)

    def after(rules, step):
        given = type(state)(jnp.int32(step), state.params, state.model_state, state.opt_state, {})
        return jax.jit(make_train_step(apply, optimizer, LOSSES["bce"], rules))(given, batch, jnp.float32(0.0))[0]

    path = next(path for path in state.model_state if path.endswith("moving_mean"))
    old, slow = state.model_state[path], after(StepOptions(batch_norm_warmup=False), 0).model_state[path]
    seen = old + (slow - old) / 0.01
    np.testing.assert_allclose(
        after(StepOptions(), 0).model_state[path], old + 0.9 * (seen - old), rtol=1e-3, atol=1e-6
    )
    late = [after(StepOptions(batch_norm_warmup=warm), 5000).model_state[path] for warm in (True, False)]
    np.testing.assert_allclose(*late, rtol=1e-4, atol=1e-7)


HEADS = ("mask", "boundary", "distance", "hover")


@pytest.fixture
def parts_with_heads(parts):
    """Nuclei as boxes; two of the eight images have no instance labels."""
    import keras

    keras.utils.set_random_seed(0)
    model = build_model("unet", image_size=SIZE, args=ARGS, num_maps=num_maps(HEADS))
    apply, params, model_state = functionalize(model)
    _, optimizer, _, batch = parts
    samples = []
    for number in range(8):
        labels = np.zeros(SIZE, np.int32)
        labels[4 : 14 + number, 5:20], labels[4:16, 20:33] = 1, 2
        known = labels if number not in (2, 5) else None
        samples.append(Element(Sample(batch.image[number], (labels > 0).astype(np.uint8), known), number))
    return apply, optimizer, create_state(params, model_state, optimizer), samples


def head_steps(parts, mesh, samples, steps=3):
    apply, optimizer, state, _ = parts
    rules = StepOptions(seed=1, heads=HEADS, head_weights={"hover": 0.5}, touching_weight=2.0)
    everywhere, spread = replicated(mesh), batch_sharding(mesh, HEADS)
    step = jax.jit(
        make_train_step(apply, optimizer, LOSSES["bce_soft_dice"], rules),
        in_shardings=(everywhere, spread, everywhere),
        out_shardings=everywhere,
    )
    batch = jax.device_put(collate(samples, batch_size=8, heads=HEADS), spread)
    state, losses = jax.device_put(state, everywhere), []
    for _ in range(steps):
        state, metrics = step(state, batch, np.float32(1e-3))
        losses.append(float(metrics.loss))
    return losses


@pytest.mark.parametrize("shape", [pytest.param((8, 1), marks=pytest.mark.slow), (2, 4)])
def test_heads_on_eight_devices_equal_one(parts_with_heads, shape):
    samples = parts_with_heads[3]
    one = head_steps(parts_with_heads, make_mesh(MeshConfig(), batch_size=8), samples)
    many = head_steps(parts_with_heads, make_mesh(MeshConfig(data=shape[0], spatial=shape[1]), batch_size=8), samples)
    np.testing.assert_allclose(many, one, rtol=2e-5)
    assert one[-1] < one[0]


def test_heads_learn_from_labelled_images_alone(parts_with_heads):
    """Without any labels the loss is the mask's; the eval step counts the heads as the train step does."""
    apply, _, state, samples = parts_with_heads
    unlabeled = [element._replace(sample=element.sample._replace(instances=None)) for element in samples]
    rules = StepOptions(heads=HEADS, touching_weight=2.0)
    score = jax.jit(make_eval_step(apply, LOSSES["bce"], rules))
    alone = score(state, collate(unlabeled, batch_size=8, heads=HEADS))
    (logits, *_), _ = apply(state.params, state.model_state, collate(samples, batch_size=8).image)
    masks = jnp.asarray(collate(samples, batch_size=8).mask, jnp.float32)
    np.testing.assert_allclose(alone.loss, LOSSES["bce"](logits[..., :1], masks, jnp.ones(8)), rtol=1e-5)
    assert float(score(state, collate(samples, batch_size=8, heads=HEADS)).loss) > float(alone.loss)


def test_mesh_takes_what_divides_the_batch():
    assert dict(make_mesh(None, batch_size=6).shape) == {"data": 2, "fsdp": 1, "spatial": 1}
    assert dict(make_mesh(None, batch_size=16).shape) == {"data": 8, "fsdp": 1, "spatial": 1}
    assert dict(make_mesh(None, batch_size=2, height=512).shape) == {"data": 2, "fsdp": 1, "spatial": 4}
    assert dict(make_mesh(None, batch_size=2, height=160).shape) == {"data": 2, "fsdp": 1, "spatial": 2}
    with pytest.raises(ConfigError, match="runtime.mesh: 4 x 1 x 4 needs 16 devices, got 8"):
        make_mesh(MeshConfig(data=4, spatial=4), batch_size=4)


def test_required_platform():
    require_devices(RuntimeConfig(require="cpu"))
    with pytest.raises(ConfigError, match="runtime.require: tpu is required, got cpu"):
        require_devices(RuntimeConfig(require="tpu"))


def test_same_step_same_result_other_step_other_dropout(parts):
    apply, optimizer, state, batch = parts
    step = jax.jit(make_train_step(apply, optimizer, LOSSES["bce"], StepOptions(seed=1)))
    batch = jax.tree.map(jnp.asarray, batch)
    one, two = step(state, batch, jnp.float32(0.0)), step(state, batch, jnp.float32(0.0))
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True))
    later = jax.tree.map(lambda leaf: leaf, state)
    later = type(state)(jnp.int32(5), later.params, later.model_state, later.opt_state, {})
    assert float(step(later, batch, jnp.float32(0.0))[1].loss) != float(one[1].loss)


def test_streams_and_steps_have_their_own_keys():
    keys = {
        tuple(np.asarray(jax.random.key_data(stream_key(seed, stream, jnp.int32(step)))))
        for seed in (0, 1)
        for stream in ("dropout", "other")
        for step in (0, 1)
    }
    assert len(keys) == 8


def test_padding_never_counts_in_evaluation(parts):
    apply, _, state, batch = parts
    score = jax.jit(make_eval_step(apply, LOSSES["bce_dice"], StepOptions()))
    samples = [Element(Sample(batch.image[i], batch.mask[i, ..., 0]), i) for i in range(5)]
    padded, exact = collate(samples, batch_size=8), collate(samples, batch_size=5)
    assert padded.valid.tolist() == [1] * 5 + [0] * 3
    a, b = score(state, padded), score(state, exact)
    np.testing.assert_allclose(a.loss, b.loss, rtol=1e-5)
    np.testing.assert_allclose(a.dice_coef, b.dice_coef, rtol=1e-5)


def test_adam_is_the_papers_second_form(rng):
    """Against a loop over the formula, in float64."""
    gradients = rng.normal(0, 1e-3, (5, 40)) * 10.0 ** rng.integers(-6, 1, 40)
    transform = scale_by_adam_epsilon_hat()
    state = transform.init(jnp.zeros(40))
    mean = variance = np.zeros(40)
    for t, gradient in enumerate(gradients, start=1):
        direction, state = transform.update(jnp.asarray(gradient, jnp.float32), state)
        mean, variance = 0.9 * mean + 0.1 * gradient, 0.999 * variance + 0.001 * gradient**2
        want = np.sqrt(1 - 0.999**t) / (1 - 0.9**t) * mean / (np.sqrt(variance) + 1e-7)
        np.testing.assert_allclose(direction, want, rtol=1e-4)


def test_adam_equals_keras(rng):
    import keras

    values, optimizer = rng.normal(size=30).astype(np.float32), keras.optimizers.Adam(1e-2, clipvalue=0.5)
    variable = keras.Variable(values)
    transform = make_optimizer(clip_value=0.5)
    ours, state = jnp.asarray(values), transform.init(jnp.asarray(values))
    for _ in range(4):
        gradient = rng.normal(0, 1, 30).astype(np.float32)
        optimizer.apply([jnp.asarray(gradient)], [variable])
        direction, state = transform.update(jnp.asarray(gradient), state)
        ours = optax.apply_updates(ours, -1e-2 * direction)
    np.testing.assert_allclose(ours, np.asarray(variable.value), rtol=1e-5, atol=1e-7)


def stepped(parts, rules, *, weight_decay=0.0, steps=2):
    apply, _, state, batch = parts
    optimizer = make_optimizer(clip_value=0.5, weight_decay=weight_decay)
    state = create_state(state.params, state.model_state, optimizer, with_ema=rules.ema_decay is not None)
    step = jax.jit(make_train_step(apply, optimizer, LOSSES["bce"], rules))
    states = [state]
    for _ in range(steps):
        states.append(step(states[-1], jax.tree.map(jnp.asarray, batch), jnp.float32(1e-2))[0])
    return states


def test_moving_average_of_the_weights(parts):
    states = stepped(parts, StepOptions(ema_decay=0.9), steps=3)
    average = states[0].params["head/kernel"]
    for number, state in enumerate(states[1:]):
        decay = min(0.9, (1 + number) / (10 + number))
        average = decay * average + (1 - decay) * state.params["head/kernel"]
    np.testing.assert_allclose(states[-1].ema_params["head/kernel"], average, rtol=1e-5)
    assert states[-1].averaged_params is states[-1].ema_params
    plain = stepped(parts, StepOptions(), steps=3)[-1]
    assert plain.averaged_params is plain.params
    np.testing.assert_allclose(plain.params["head/kernel"], states[-1].params["head/kernel"], rtol=1e-5)


def test_rate_factors_freeze_and_slow_down(parts):
    before, after = stepped(parts, StepOptions(lr_multipliers={"encoder": 0.0, "encoder1": 0.5}), steps=1)
    free = stepped(parts, StepOptions(), steps=1)[-1]
    for path, value in before.params.items():
        moved, freely = after.params[path] - value, free.params[path] - value
        factor = 0.5 if path.startswith("encoder1") else 0.0 if path.startswith("encoder") else 1.0
        np.testing.assert_allclose(moved, factor * freely, atol=1e-6, err_msg=path)
    check_lr_multipliers({"encoder0_conv1": 0.1}, before.params)
    with pytest.raises(ConfigError, match="train.lr_multipliers: .* begins with 'encodr'"):
        check_lr_multipliers({"encodr": 0.1}, before.params)


def test_weight_decay_shrinks_kernels_alone(parts):
    before, after = stepped(parts, StepOptions(), steps=1, weight_decay=0.1)
    plain = stepped(parts, StepOptions(), steps=1)[-1]
    for path, value in before.params.items():
        want = plain.params[path] - (1e-3 * value if value.ndim > 1 else 0.0)
        np.testing.assert_allclose(after.params[path], want, atol=1e-6, err_msg=path)


@pytest.mark.slow
def test_l2_penalty_adds_twice_the_kernel_to_its_gradient(parts):
    apply, _, state, batch = parts
    batch = jax.tree.map(jnp.asarray, batch)
    plain = optax.identity()
    state = create_state(state.params, state.model_state, plain)
    results = [
        jax.jit(make_train_step(apply, plain, LOSSES["bce"], StepOptions(l2_penalty=penalty)))(
            state, batch, jnp.float32(1.0)
        )[0]
        for penalty in (0.0, 0.01)
    ]
    for path, value in state.params.items():
        want = results[0].params[path] - (0.02 * value if value.ndim > 1 else 0.0)
        np.testing.assert_allclose(results[1].params[path], want, atol=1e-4, err_msg=path)


def test_side_outputs_join_the_objective_but_not_the_reported_loss(rng):
    params = {"head/kernel": jnp.ones((3, 1)), "side/kernel": jnp.ones((3, 1))}

    def apply(params, model_state, images, *, key=None):
        return [jnp.asarray(images, jnp.float32) / 255 @ params[name] for name in params], model_state

    images = jnp.asarray(rng.integers(0, 256, (2, *SIZE, 3), np.uint8))
    masks = jnp.asarray(rng.random((2, *SIZE, 1)) < 0.3, jnp.uint8)
    batch = Batch(images, masks, jnp.ones(2, jnp.float32), jnp.arange(2))
    optimizer = make_optimizer(clip_value=None)
    states, losses = [], []
    for weight in (0.0, 1.0):
        step = jax.jit(make_train_step(apply, optimizer, LOSSES["bce"], StepOptions(deep_supervision_weight=weight)))
        state, metrics = step(create_state(params, {}, optimizer), batch, jnp.float32(1e-3))
        states.append(state)
        losses.append(float(metrics.loss))
    assert losses[0] == losses[1]
    assert np.array_equal(states[0].params["side/kernel"], params["side/kernel"])
    assert not np.array_equal(states[1].params["side/kernel"], params["side/kernel"])
    np.testing.assert_array_equal(states[0].params["head/kernel"], states[1].params["head/kernel"])


@pytest.mark.slow
@pytest.mark.parametrize(("options", "bound"), [((), 1e-12), (("--batch-norm",), 1e-4)])
def test_gradients_on_meshes_equal_those_of_one_device_in_float64(options, bound):
    """Keras keeps the statistics of BatchNorm in float32."""
    command = [sys.executable, ROOT / "scripts" / "compare_meshes.py", "--size", "48", "60", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = [line.strip("|").split("|") for line in done.stdout.splitlines()[2:]]
    assert len(rows) == 7
    for _, single, double, gradients, _, gathered in rows:
        assert float(single) < 1e-6
        assert float(double) < max(bound, 1e-12)
        assert float(gradients) < bound
        assert float(gathered) < 1  # no image or activation is copied whole
