"""What this program's own functions are called with to be timed."""

import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from cervseg_jax.data.augment import Sample
from cervseg_jax.data.batch import Batch, abstract_batch, batch_sharding
from cervseg_jax.data.pipeline import batches_ahead, train_batches
from cervseg_jax.data.source import Pair
from cervseg_jax.engine.experiment import configured_network, configured_optimizer, lower_train_step, step_flops
from cervseg_jax.engine.predict import make_predict
from cervseg_jax.engine.state import create_state
from cervseg_jax.models import backend_for
from cervseg_jax.runtime.mesh import place, state_sharding, train_mesh
from cervseg_jax.schema import Config


class Subject(NamedTuple):
    """Functions to time, and what is known without timing."""

    step: Callable[[], None]
    """A train step on a batch that lies on the device."""
    fed_step: Callable[[Iterator[Batch]], None]
    """A train step on the next batch of a pipeline."""
    forward: Callable[[], None]
    """A prediction, from uint8 images to probabilities on the host."""
    facts: Mapping[str, float]
    """Seconds of compilation, operations of a step, bytes of temporary memory."""


def with_precision(config: Config, precision: str) -> Config:
    """Returns the recipe with another precision."""
    return config.model_copy(update={"runtime": config.runtime.model_copy(update={"precision": precision})})


def random_batch(config: Config) -> Batch:
    """Returns a batch of noise in the recipe's shape; masks cover a third."""
    shapes = abstract_batch(config.train.batch_size, config.model.image_size, heads=config.model.heads)
    rng = np.random.default_rng(0)
    batch: Any = jax.tree.map(lambda shape: np.ones(shape.shape, shape.dtype), shapes)
    batch.image[:] = rng.integers(0, 256, batch.image.shape, np.uint8)
    batch.mask[:] = rng.random(batch.mask.shape) < 1 / 3
    batch.vote[:] = 0
    return batch


def prepare_subject(config: Config) -> Subject:
    """Compiles the recipe's train step and prediction.

    Args:
      config: the recipe.

    Returns:
      The functions; each keeps its own state.
    """
    mesh = train_mesh(config)
    apply, params, model_state = configured_network(config, backend=backend_for(mesh))
    optimizer = configured_optimizer(config)
    state = create_state(params, model_state, optimizer, with_ema=config.train.ema_decay is not None)
    held = [place(state, state_sharding(mesh, state))]
    start = time.perf_counter()
    lowered = lower_train_step(config, apply, optimizer, state, mesh)
    traced = time.perf_counter()
    train_step = lowered.compile()
    compiled = time.perf_counter()
    placement = batch_sharding(mesh, config.model.heads)
    host_batch = random_batch(config)
    device_batch = place(host_batch, placement)
    rate = np.float32(config.train.learning_rate)
    predict = make_predict(apply, mesh)

    def advance(batch: Batch) -> None:
        held[0], metrics = train_step(held[0], batch, rate)
        jax.block_until_ready(metrics)

    def forward() -> None:
        predict(held[0].params, held[0].model_state, np.asarray(host_batch.image))

    facts = {
        "trace_seconds": traced - start,
        "compile_seconds": compiled - traced,
        "step_flops": step_flops(config, optimizer, state, mesh),
        "temporary_bytes": float(getattr(train_step.memory_analysis(), "temp_size_in_bytes", 0)),
    }
    return Subject(
        lambda: advance(device_batch), lambda batches: advance(place(next(batches), placement)), forward, facts
    )


def input_batches(config: Config, pairs: list[Pair], load: Callable[[Pair], Sample]) -> Iterator[Batch]:
    """Returns the recipe's training input, warm: `load` has seen every pair, threads run and have read ahead."""
    for pair in pairs:
        load(pair)
    batches = train_batches(config, pairs, start_step=0, load=load)
    for _ in range(2 + batches_ahead(config.data)):
        next(batches)
    return batches


def peak_memory_bytes() -> int:
    """Returns the most memory that this process ever held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
