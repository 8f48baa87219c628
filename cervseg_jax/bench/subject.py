"""The timed functions of this program: train step, prediction and input pipeline of a recipe."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from cervseg_jax.data.batch import Batch, abstract_batch
from cervseg_jax.data.pairs import Pair
from cervseg_jax.data.pipeline import batches_ahead, train_batches
from cervseg_jax.data.samples import Sample
from cervseg_jax.engine.cost import StepCost
from cervseg_jax.engine.experiment import build_experiment
from cervseg_jax.models import Backend
from cervseg_jax.schema import Config


class Subject(NamedTuple):
    """Functions to time, and their cost as the compiler reports it."""

    step: Callable[[], None]
    """Runs a train step on a batch that is on the device."""
    fed_step: Callable[[Iterator[Batch]], None]
    """Runs a train step on the next batch of a pipeline."""
    forward: Callable[[], None]
    """Predicts a batch, from uint8 images to probabilities on the host."""
    cost: StepCost


def with_precision(config: Config, precision: str) -> Config:
    """Returns the recipe with another precision."""
    return config.model_copy(update={"runtime": config.runtime.model_copy(update={"precision": precision})})


def random_batch(config: Config) -> Batch:
    """Returns a batch of noise in the recipe's shape; a third of the mask is nucleus."""
    shapes = abstract_batch(config.train.batch_size, config.model.image_size, heads=config.model.heads)
    rng = np.random.default_rng(0)
    batch: Any = jax.tree.map(lambda shape: np.ones(shape.shape, shape.dtype), shapes)
    batch.image[:] = rng.integers(0, 256, batch.image.shape, np.uint8)
    batch.mask[:] = rng.random(batch.mask.shape) < 1 / 3
    return batch


def prepare_subject(config: Config, *, backend: Backend | None = None) -> Subject:
    """Compiles the recipe's train step and prediction.

    Args:
      config: the recipe.
      backend: what the layers are built for; None takes what training would.

    Returns:
      The functions; they share one training state.
    """
    experiment = build_experiment(config, backend=backend)
    steps = experiment.compile()
    state = experiment.initial_state()
    host_batch = random_batch(config)
    device_batch = experiment.place_batch(host_batch)
    learning_rate = np.float32(config.train.learning_rate)

    def advance(batch: Batch) -> None:
        nonlocal state
        state, metrics = steps.train_step(state, batch, learning_rate)
        jax.block_until_ready(metrics)

    def forward() -> None:
        steps.predict(state.params, state.model_state, np.asarray(host_batch.image))

    return Subject(
        step=lambda: advance(device_batch),
        fed_step=lambda batches: advance(experiment.place_batch(next(batches))),
        forward=forward,
        cost=steps.cost,
    )


def input_batches(config: Config, pairs: list[Pair], load: Callable[[Pair], Sample]) -> Iterator[Batch]:
    """Returns the recipe's training input, warmed up: `load` has seen every pair, and the read-ahead buffer is full."""
    for pair in pairs:
        load(pair)
    batches = train_batches(config, pairs, start_step=0, load=load)
    for _ in range(2 + batches_ahead(config.data)):
        next(batches)
    return batches
