"""The pure train, evaluation and prediction steps."""

import zlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from cervseg_jax.data.batch import Batch
from cervseg_jax.losses import Loss, dice_coef
from cervseg_jax.metrics.pixel import pixel_counts
from cervseg_jax.models import Apply
from cervseg_jax.training.state import TrainState


class StepMetrics(NamedTuple):
    """What one batch showed."""

    loss: jax.Array
    """Scalar; of the parameters before the update."""
    dice_coef: jax.Array
    """Scalar; soft Dice pooled over the batch."""
    counts: jax.Array
    """int32 [b, 4] as `pixel_counts`; rows of padding are included."""


TrainStep = Callable[[TrainState, Batch, jax.Array], tuple[TrainState, StepMetrics]]
EvalStep = Callable[[TrainState, Batch], StepMetrics]


def stream_key(seed: int, stream: str, step: jax.Array) -> jax.Array:
    """Returns the random key of a named stream at a step; streams and steps are independent of each other."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), zlib.crc32(stream.encode())), step)


def make_train_step(
    apply: Apply, optimizer: optax.GradientTransformation, loss: Loss, *, seed: int, threshold: float
) -> TrainStep:
    """Returns the function that makes one optimizer update.

    Args:
      apply: the network.
      optimizer: transform from gradients to directions.
      loss: from logits, masks and valid to a scalar.
      seed: seed of dropout.
      threshold: probability from which a pixel counts as nucleus, for the metrics.

    Returns:
      `train_step(state, batch, learning_rate) -> (state, metrics)`, pure.
    """

    def train_step(state: TrainState, batch: Batch, learning_rate: jax.Array) -> tuple[TrainState, StepMetrics]:
        key = stream_key(seed, "dropout", state.step)
        masks = batch.mask.astype(jnp.float32)

        def objective(params):
            logits, model_state = apply(params, state.model_state, batch.image, key=key)
            return loss(logits, masks, batch.valid), (logits, model_state)

        (value, (logits, model_state)), gradients = jax.value_and_grad(objective, has_aux=True)(state.params)
        directions, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = jax.tree.map(lambda param, direction: param - learning_rate * direction, state.params, directions)
        metrics = _metrics(value, logits, masks, batch.valid, threshold=threshold)
        return TrainState(state.step + 1, params, model_state, opt_state), metrics

    return train_step


def make_eval_step(apply: Apply, loss: Loss, *, threshold: float) -> EvalStep:
    """Returns the function that scores one batch in inference mode.

    Args:
      apply: the network.
      loss: from logits, masks and valid to a scalar.
      threshold: probability from which a pixel counts as nucleus.

    Returns:
      `eval_step(state, batch) -> metrics`, pure.
    """

    def eval_step(state: TrainState, batch: Batch) -> StepMetrics:
        masks = batch.mask.astype(jnp.float32)
        logits, _ = apply(state.params, state.model_state, batch.image)
        return _metrics(loss(logits, masks, batch.valid), logits, masks, batch.valid, threshold=threshold)

    return eval_step


def _metrics(
    loss: jax.Array, logits: jax.Array, masks: jax.Array, valid: jax.Array, *, threshold: float
) -> StepMetrics:
    counts = pixel_counts(logits, masks, threshold=threshold)
    return StepMetrics(loss, dice_coef(logits, masks, valid), counts)
