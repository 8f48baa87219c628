"""The pure train, evaluation and prediction steps."""

import functools
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from cervseg_jax.components import suggestion
from cervseg_jax.data.batch import Batch
from cervseg_jax.engine.state import TrainState
from cervseg_jax.errors import ConfigError
from cervseg_jax.heads import Head
from cervseg_jax.losses import Loss, dice_coef
from cervseg_jax.losses.heads import heads_loss, touching_loss
from cervseg_jax.metrics.pixel import pixel_counts
from cervseg_jax.models import Apply
from cervseg_jax.models.layers.blocks import BATCH_NORM_MOMENTUM
from cervseg_jax.typing import ModelState, Params


class StepMetrics(NamedTuple):
    """What one batch showed."""

    loss: jax.Array
    """Scalar; of the parameters before the update."""
    dice_coef: jax.Array
    """Scalar; soft Dice pooled over the batch."""
    counts: jax.Array
    """int32 [b, 4] as `pixel_counts`; rows of padding are included."""
    valid: jax.Array
    """As in the batch."""
    image_id: jax.Array
    """As in the batch."""
    gradient_norm: jax.Array
    """Scalar; Euclidean, before clipping. 0 in evaluation."""
    param_norm: jax.Array
    """Scalar; Euclidean, before the update. 0 in evaluation."""


RUNNING = ("/moving_mean", "/moving_variance")
"""Ends of the paths of BatchNorm's running statistics."""

TrainStep = Callable[[TrainState, Batch, jax.Array], tuple[TrainState, StepMetrics]]
EvalStep = Callable[[TrainState, Batch], StepMetrics]


def stream_key(seed: int, stream: str, step: jax.Array) -> jax.Array:
    """Returns the random key of a named stream at a step; streams and steps are independent of each other."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), zlib.crc32(stream.encode())), step)


class StepOptions(NamedTuple):
    """What a train step does besides the gradient."""

    seed: int = 0
    """Seed of dropout."""
    threshold: float = 0.5
    """Probability from which a pixel counts as nucleus, for the metrics."""
    deep_supervision_weight: float = 1.0
    """What the loss of each side output counts."""
    l2_penalty: float = 0.0
    """What the sum of the squares of all kernels adds to the objective, times this."""
    lr_multipliers: Mapping[str, float] = {}
    """Factors on the learning rate by the beginning of variable paths; the longest that fits counts."""
    heads: tuple[Head, ...] = ("mask",)
    """What the network's channels are."""
    head_weights: Mapping[Head, float] = {}
    """What the losses of heads besides the mask count; 1 where one is not named."""
    touching_weight: float = 0.0
    """What the cross-entropy between touching nuclei counts."""
    batch_norm_warmup: bool = True
    """Whether BatchNorm's running statistics follow faster in the first steps; see `warmup_batch_stats`."""
    ema_decay: float | None = None
    """Decay of the moving average; smaller in the first steps, (1 + step) / (10 + step)."""
    num_parts: int = 1
    """Parts that a batch is computed in, one after the other; see `_in_parts`."""
    remat: bool = False
    """Whether only what convolutions and products return is kept for the gradient; the rest is computed again."""


def make_train_step(apply: Apply, optimizer: optax.GradientTransformation, loss: Loss, rules: StepOptions) -> TrainStep:
    """Returns the function that makes one optimizer update.

    Args:
      apply: the network.
      optimizer: transform from gradients to directions.
      loss: from logits, masks and valid to a scalar.
      rules: everything else. The reported loss is the prediction's, all heads together, without side outputs and
        penalty.

    Returns:
      `train_step(state, batch, learning_rate) -> (state, metrics)`, pure.
    """

    def train_step(state: TrainState, batch: Batch, learning_rate: jax.Array) -> tuple[TrainState, StepMetrics]:
        key = stream_key(rules.seed, "dropout", state.step)
        differentiate = jax.value_and_grad(functools.partial(objective, apply, loss, rules), has_aux=True)
        if rules.num_parts == 1:
            (_, (value, logits, model_state)), gradients = differentiate(state.params, state.model_state, batch, key)
        else:
            gradients, model_state, logits = _in_parts(differentiate, rules.num_parts, state, batch, key)
            value = _batch_loss(batch, logits, loss=loss, rules=rules)
        updated: Any = optimizer.update(gradients, state.opt_state, state.params)
        directions, opt_state = updated
        params = {
            path: param - learning_rate * _factor(rules.lr_multipliers, path) * directions[path]
            for path, param in state.params.items()
        }
        if rules.batch_norm_warmup:
            model_state = warmup_batch_stats(state.model_state, model_state, state.step)
        ema_params = state.ema_params
        if rules.ema_decay is not None:
            decay = jnp.minimum(rules.ema_decay, (1.0 + state.step) / (10.0 + state.step))
            ema_params = {path: decay * old + (1.0 - decay) * params[path] for path, old in ema_params.items()}
        metrics = _metrics(value, logits[..., :1], batch, threshold=rules.threshold)
        metrics = metrics._replace(gradient_norm=_norm(gradients), param_norm=_norm(state.params))
        return TrainState(state.step + 1, params, model_state, opt_state, ema_params), metrics

    return train_step


def _norm(tree: Params) -> jax.Array:
    return jnp.sqrt(sum((jnp.sum(jnp.square(leaf)) for leaf in tree.values()), jnp.zeros(())))


def objective(
    apply: Apply, loss: Loss, rules: StepOptions, params: Params, model_state: ModelState, batch: Batch, key: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, ModelState]]:
    """Returns what is made small; besides it the reported loss, the logits and the new model state."""

    def forward(params: Params, images: Any) -> tuple[list[jax.Array], ModelState]:
        return apply(params, model_state, images, key=key)

    if rules.remat:
        forward = jax.checkpoint(forward, policy=_is_costly)
    (logits, *sides), model_state = forward(params, batch.image)
    value = _batch_loss(batch, logits, loss=loss, rules=rules)
    total = value + rules.deep_supervision_weight * sum(
        _batch_loss(batch, side, loss=loss, rules=rules) for side in sides
    )
    if rules.l2_penalty:
        squares = [jnp.sum(jnp.square(param)) for param in params.values() if param.ndim > 1]
        total = total + rules.l2_penalty * sum(squares)
    return total, (value, logits, model_state)


def _is_costly(primitive: Any, *_: Any, **__: Any) -> bool:
    """Whether a result is dear to compute again: those of convolutions and products are kept, all else is cheap."""
    return primitive.name in ("conv_general_dilated", "dot_general")


def _in_parts(
    differentiate: Callable[..., Any], num_parts: int, state: TrainState, batch: Batch, key: jax.Array
) -> tuple[Params, ModelState, jax.Array]:
    """Computes a batch in parts, so that the activations of one are in memory at a time.

    Gradients are means over the parts, weighted by their real images. BatchNorm sees each part by itself, and so do
    losses that pool a batch; losses that are means over images come out as for the whole batch.

    Returns:
      Gradients, model state and logits [b, h, w, maps].
    """

    def split(array: jax.Array) -> jax.Array:
        # Every num_parts-th image, so that each device keeps those that it has.
        return jnp.swapaxes(array.reshape(-1, num_parts, *array.shape[1:]), 0, 1)

    def join(array: jax.Array) -> jax.Array:
        return jnp.swapaxes(array, 0, 1).reshape(-1, *array.shape[2:])

    def one(carry: Any, part: Any) -> tuple[Any, jax.Array]:
        total, model_state = carry
        number, images = part
        (_, (_, logits, model_state)), gradients = differentiate(
            state.params, model_state, images, jax.random.fold_in(key, number)
        )
        share = images.valid.sum() / jnp.maximum(batch.valid.sum(), 1.0)
        return (jax.tree.map(lambda sum_, new: sum_ + share * new, total, gradients), model_state), logits

    start = (jax.tree.map(jnp.zeros_like, state.params), state.model_state)
    (gradients, model_state), logits = jax.lax.scan(one, start, (jnp.arange(num_parts), jax.tree.map(split, batch)))
    return gradients, model_state, join(logits)


def _batch_loss(batch: Batch, logits: jax.Array, *, loss: Loss, rules: StepOptions) -> jax.Array:
    """The mask's loss, and those of the other heads over the images whose nuclei are told apart."""
    masks = batch.mask.astype(jnp.float32)
    value = loss(logits[..., :1], masks, batch.valid)
    targets = batch.targets
    if targets is None:
        return value
    known = targets.known * batch.valid
    value += heads_loss(logits, targets.maps, known, heads=rules.heads, weights=rules.head_weights)
    if rules.touching_weight:
        value += rules.touching_weight * touching_loss(logits[..., :1], masks, targets.touching, known)
    return value


def warmup_batch_stats(before: ModelState, after: ModelState, step: jax.Array) -> ModelState:
    """Lets BatchNorm's running statistics follow faster while there were few steps.

    With a momentum of 0.99 they lag a hundred steps behind the weights and remember their initial values as long; a
    deep network that fits its training images predicts nonsense in inference mode meanwhile. Here the momentum grows
    as (1 + step) / (10 + step) up to that value, as it does for moving averages of weights.

    Args:
      before: statistics before the step.
      after: what the layers made of them with their own momentum.
      step: updates before this one.

    Returns:
      The statistics to keep.
    """
    momentum = jnp.minimum(BATCH_NORM_MOMENTUM, (1.0 + step) / (10.0 + step))
    gain = (1.0 - momentum) / (1.0 - BATCH_NORM_MOMENTUM)
    return {
        path: before[path] + gain * (value - before[path]) if path.endswith(RUNNING) else value
        for path, value in after.items()
    }


def check_lr_multipliers(factors: Mapping[str, float], params: Params) -> None:
    """Makes sure that every factor has variables.

    Raises:
      ConfigError: naming a beginning that fits no variable.
    """
    for beginning in factors:
        if not any(path.startswith(beginning) for path in params):
            known = sorted({path.partition("/")[0] for path in params})
            raise ConfigError(
                f"train.lr_multipliers: no layer with trainable variables begins with {beginning!r}; "
                f"{suggestion(beginning, known)}"
            )


def _factor(factors: Mapping[str, float], path: str) -> float:
    fitting = [beginning for beginning in factors if path.startswith(beginning)]
    return factors[max(fitting, key=len)] if fitting else 1.0


def make_eval_step(apply: Apply, loss: Loss, rules: StepOptions) -> EvalStep:
    """Returns the function that scores one batch in inference mode.

    Args:
      apply: the network.
      loss: from logits, masks and valid to a scalar.
      rules: of the training; its heads, their weights and the threshold count here.

    Returns:
      `eval_step(state, batch) -> metrics`, pure.
    """

    def eval_step(state: TrainState, batch: Batch) -> StepMetrics:
        (logits, *_), _ = apply(state.averaged_params, state.model_state, batch.image)
        value = _batch_loss(batch, logits, loss=loss, rules=rules)
        return _metrics(value, logits[..., :1], batch, threshold=rules.threshold)

    return eval_step


def _metrics(loss: jax.Array, logits: jax.Array, batch: Batch, *, threshold: float) -> StepMetrics:
    masks = batch.mask.astype(jnp.float32)
    counts = pixel_counts(logits, masks, threshold=threshold)
    dice = dice_coef(logits, masks, batch.valid)
    zero = jnp.zeros(())
    return StepMetrics(loss, dice, counts, batch.valid, batch.image_id, zero, zero)
