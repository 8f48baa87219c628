"""The pure train and evaluation steps."""

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
    """Metrics of one batch."""

    loss: jax.Array
    """Scalar; computed with the parameters before the update."""
    dice_coef: jax.Array
    """Scalar; soft Dice pooled over the batch."""
    counts: jax.Array
    """int32 [b, 4] as `pixel_counts`; includes padding."""
    valid: jax.Array
    """As in the batch."""
    image_id: jax.Array
    """As in the batch."""
    gradient_norm: jax.Array
    """Scalar; Euclidean, before clipping. 0 in evaluation."""
    param_norm: jax.Array
    """Scalar; Euclidean, before the update. 0 in evaluation."""


RUNNING = ("/moving_mean", "/moving_variance")
"""Suffixes of the variable paths of BatchNorm's running statistics."""

TrainStep = Callable[[TrainState, Batch, jax.Array], tuple[TrainState, StepMetrics]]
EvalStep = Callable[[TrainState, Batch], StepMetrics]


def stream_key(seed: int, stream: str, step: jax.Array) -> jax.Array:
    """Returns the random key of a named stream at a step; streams and steps are independent of each other."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), zlib.crc32(stream.encode())), step)


class StepOptions(NamedTuple):
    """Options of the train and evaluation steps."""

    seed: int = 0
    """Seed of dropout."""
    threshold: float = 0.5
    """Probability from which a pixel counts as nucleus in the metrics."""
    deep_supervision_weight: float = 1.0
    """Weight of the loss of each side output."""
    l2_penalty: float = 0.0
    """Weight of the sum of squares of all kernels in the objective."""
    lr_multipliers: Mapping[str, float] = {}
    """Factors of the learning rate by prefix of variable paths; the longest matching prefix applies."""
    heads: tuple[Head, ...] = ("mask",)
    """Heads of the network, in the order of its output channels."""
    head_weights: Mapping[Head, float] = {}
    """Weights of the losses of heads other than the mask; 1 by default."""
    touching_weight: float = 0.0
    """Weight of the cross-entropy over the pixels between touching nuclei."""
    batch_norm_warmup: bool = True
    """Whether BatchNorm's running statistics adapt faster in the first steps; see `warmup_batch_stats`."""
    ema_decay: float | None = None
    """Decay of the moving average of the parameters; at most (1 + step) / (10 + step) in the first steps."""
    grad_accum_steps: int = 1
    """Number of micro-batches that a batch is computed in; see `_accumulate_gradients`."""
    remat: bool = False
    """Whether to keep only the outputs of convolutions and matmuls for the gradient, and rematerialize the rest."""


def make_train_step(
    apply: Apply, optimizer: optax.GradientTransformation, loss: Loss, options: StepOptions
) -> TrainStep:
    """Returns the function that makes one optimizer update.

    The reported loss is that of the prediction with all heads, without side outputs and penalty.

    Args:
      apply: the network.
      optimizer: transform from gradients to directions.
      loss: maps logits, masks and `valid` to a scalar.
      options: everything else.

    Returns:
      `train_step(state, batch, learning_rate) -> (state, metrics)`, pure.
    """

    def train_step(state: TrainState, batch: Batch, learning_rate: jax.Array) -> tuple[TrainState, StepMetrics]:
        key = stream_key(options.seed, "dropout", state.step)
        differentiate = jax.value_and_grad(functools.partial(objective, apply, loss, options), has_aux=True)
        if options.grad_accum_steps == 1:
            (_, (value, logits, model_state)), gradients = differentiate(state.params, state.model_state, batch, key)
        else:
            gradients, model_state, logits = _accumulate_gradients(
                differentiate, options.grad_accum_steps, state, batch, key
            )
            value = _batch_loss(batch, logits, loss=loss, options=options)
        updated: Any = optimizer.update(gradients, state.opt_state, state.params)
        directions, opt_state = updated
        params = {
            path: param - learning_rate * _factor(options.lr_multipliers, path) * directions[path]
            for path, param in state.params.items()
        }
        if options.batch_norm_warmup:
            model_state = warmup_batch_stats(state.model_state, model_state, state.step)
        ema_params = state.ema_params
        if options.ema_decay is not None:
            decay = jnp.minimum(options.ema_decay, (1.0 + state.step) / (10.0 + state.step))
            ema_params = {path: decay * old + (1.0 - decay) * params[path] for path, old in ema_params.items()}
        metrics = _metrics(value, logits[..., :1], batch, threshold=options.threshold)
        metrics = metrics._replace(gradient_norm=_norm(gradients), param_norm=_norm(state.params))
        return TrainState(state.step + 1, params, model_state, opt_state, ema_params), metrics

    return train_step


def _norm(tree: Params) -> jax.Array:
    return jnp.sqrt(sum((jnp.sum(jnp.square(leaf)) for leaf in tree.values()), jnp.zeros(())))


def objective(
    apply: Apply,
    loss: Loss,
    options: StepOptions,
    params: Params,
    model_state: ModelState,
    batch: Batch,
    key: jax.Array,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, ModelState]]:
    """Returns the objective and, as aux, the reported loss, the logits and the new model state."""

    def forward(params: Params, images: Any) -> tuple[list[jax.Array], ModelState]:
        return apply(params, model_state, images, key=key)

    if options.remat:
        forward = jax.checkpoint(forward, policy=_is_saved)
    (logits, *sides), model_state = forward(params, batch.image)
    value = _batch_loss(batch, logits, loss=loss, options=options)
    total = value + options.deep_supervision_weight * sum(
        _batch_loss(batch, side, loss=loss, options=options) for side in sides
    )
    if options.l2_penalty:
        squares = [jnp.sum(jnp.square(param)) for param in params.values() if param.ndim > 1]
        total = total + options.l2_penalty * sum(squares)
    return total, (value, logits, model_state)


def _is_saved(primitive: Any, *_: Any, **__: Any) -> bool:
    """Checkpoint policy: saves convolution and matmul outputs, rematerializes the rest."""
    return primitive.name in ("conv_general_dilated", "dot_general")


def _accumulate_gradients(
    differentiate: Callable[..., Any], grad_accum_steps: int, state: TrainState, batch: Batch, key: jax.Array
) -> tuple[Params, ModelState, jax.Array]:
    """Computes a batch in micro-batches, so that the activations of only one are in memory at a time.

    Gradients are means over the micro-batches, weighted by their number of real images. BatchNorm statistics and losses
    that pool a batch are computed per micro-batch; losses that are means over images equal those of the whole batch.

    Returns:
      Gradients, model state and logits [b, h, w, maps].
    """

    def split(array: jax.Array) -> jax.Array:
        # Takes every grad_accum_steps-th image, so that no image moves to another device.
        return jnp.swapaxes(array.reshape(-1, grad_accum_steps, *array.shape[1:]), 0, 1)

    def join(array: jax.Array) -> jax.Array:
        return jnp.swapaxes(array, 0, 1).reshape(-1, *array.shape[2:])

    def add_gradients(carry: Any, indexed: Any) -> tuple[Any, jax.Array]:
        total, model_state = carry
        index, micro_batch = indexed
        (_, (_, logits, model_state)), gradients = differentiate(
            state.params, model_state, micro_batch, jax.random.fold_in(key, index)
        )
        share = micro_batch.valid.sum() / jnp.maximum(batch.valid.sum(), 1.0)
        return (jax.tree.map(lambda sum_, new: sum_ + share * new, total, gradients), model_state), logits

    start = (jax.tree.map(jnp.zeros_like, state.params), state.model_state)
    micro_batches = (jnp.arange(grad_accum_steps), jax.tree.map(split, batch))
    (gradients, model_state), logits = jax.lax.scan(add_gradients, start, micro_batches)
    return gradients, model_state, join(logits)


def _batch_loss(batch: Batch, logits: jax.Array, *, loss: Loss, options: StepOptions) -> jax.Array:
    """Returns the loss of the mask plus those of the other heads, which count images with instance labels only."""
    masks = batch.mask.astype(jnp.float32)
    value = loss(logits[..., :1], masks, batch.valid)
    targets = batch.targets
    if targets is None:
        return value
    known = targets.known * batch.valid
    value += heads_loss(logits, targets.maps, known, heads=options.heads, weights=options.head_weights)
    if options.touching_weight:
        value += options.touching_weight * touching_loss(logits[..., :1], masks, targets.touching, known)
    return value


def warmup_batch_stats(before: ModelState, after: ModelState, step: jax.Array) -> ModelState:
    """Lets BatchNorm's running statistics adapt faster in the first steps.

    With a momentum of 0.99 they lag a hundred steps behind the weights and remember their initial values as long.
    Meanwhile the predictions of a deep network in inference mode are useless, even if it fits its training images.
    Here the momentum grows as (1 + step) / (10 + step) up to that value, as for moving averages of weights.

    Args:
      before: statistics before the step.
      after: statistics after the step, updated by the layers with their own momentum.
      step: number of updates before this one.

    Returns:
      The statistics with the smaller momentum.
    """
    momentum = jnp.minimum(BATCH_NORM_MOMENTUM, (1.0 + step) / (10.0 + step))
    gain = (1.0 - momentum) / (1.0 - BATCH_NORM_MOMENTUM)
    return {
        path: before[path] + gain * (value - before[path]) if path.endswith(RUNNING) else value
        for path, value in after.items()
    }


def check_lr_multipliers(factors: Mapping[str, float], params: Params) -> None:
    """Checks that every prefix matches a variable.

    Raises:
      ConfigError: naming the first prefix that matches none.
    """
    for prefix in factors:
        if not any(path.startswith(prefix) for path in params):
            known = sorted({path.partition("/")[0] for path in params})
            raise ConfigError(
                f"train.lr_multipliers: no layer with trainable variables begins with {prefix!r}; "
                f"{suggestion(prefix, known)}"
            )


def _factor(factors: Mapping[str, float], path: str) -> float:
    prefixes = [prefix for prefix in factors if path.startswith(prefix)]
    return factors[max(prefixes, key=len)] if prefixes else 1.0


def make_eval_step(apply: Apply, loss: Loss, options: StepOptions) -> EvalStep:
    """Returns the function that scores one batch in inference mode.

    Args:
      apply: the network.
      loss: maps logits, masks and `valid` to a scalar.
      options: options of the training, of which heads, their weights and the threshold apply.

    Returns:
      `eval_step(state, batch) -> metrics`, pure.
    """

    def eval_step(state: TrainState, batch: Batch) -> StepMetrics:
        (logits, *_), _ = apply(state.averaged_params, state.model_state, batch.image)
        value = _batch_loss(batch, logits, loss=loss, options=options)
        return _metrics(value, logits[..., :1], batch, threshold=options.threshold)

    return eval_step


def _metrics(loss: jax.Array, logits: jax.Array, batch: Batch, *, threshold: float) -> StepMetrics:
    masks = batch.mask.astype(jnp.float32)
    counts = pixel_counts(logits, masks, threshold=threshold)
    dice = dice_coef(logits, masks, batch.valid)
    zero = jnp.zeros(())
    return StepMetrics(loss, dice, counts, batch.valid, batch.image_id, zero, zero)
