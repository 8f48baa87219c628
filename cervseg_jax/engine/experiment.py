"""The functions of a run, compiled for its one shape."""

import functools
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import keras
import numpy as np
import optax
from jax.sharding import Mesh

from cervseg_jax.console import Reporter
from cervseg_jax.data.batch import Batch, abstract_batch, batch_sharding
from cervseg_jax.engine.optimizer import make_optimizer
from cervseg_jax.engine.predict import WeightedPredict, make_predict
from cervseg_jax.engine.state import TrainState
from cervseg_jax.engine.step import StepMetrics, StepOptions, make_eval_step, make_train_step
from cervseg_jax.heads import num_maps
from cervseg_jax.losses import LOSSES, Loss
from cervseg_jax.models import Apply, Backend, build_abstract, build_model, functionalize
from cervseg_jax.runs.folder import EventLog
from cervseg_jax.runtime.mesh import local_images, replicated, state_sharding
from cervseg_jax.schema import Config
from cervseg_jax.training.meter import StepFacts, out_of_memory_advice
from cervseg_jax.typing import ModelState, Params


class Compiled(NamedTuple):
    """The functions of a run, each compiled for its one shape."""

    train_step: Callable[[TrainState, Batch, np.float32], tuple[TrainState, StepMetrics]]
    eval_step: Callable[[TrainState, Batch], StepMetrics]
    predict: WeightedPredict
    mesh: Mesh
    batch_sharding: Batch
    """Where the parts of a batch lie."""
    images: range
    """Which images of each batch this process holds."""
    facts: StepFacts


def compile_run(
    config: Config,
    apply: Apply,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    mesh: Mesh,
    *,
    reporter: Reporter,
    log: EventLog,
) -> Compiled:
    """Compiles the train step ahead of time: another shape would be an error, never a second compilation.

    Args:
      config: the recipe.
      apply: the network.
      optimizer: its transform.
      state: a state that lies on the mesh.
      mesh: the devices.
      reporter: is told the time and the memory.
      log: likewise.

    Returns:
      The functions of the run.
    """
    reporter.info("compiling the train step ...")
    start = time.monotonic()
    lowered = lower_train_step(config, apply, optimizer, state, mesh)
    with out_of_memory_advice(config):
        compiled = lowered.compile()
    seconds = time.monotonic() - start
    memory = compiled.memory_analysis()
    temporary = getattr(memory, "temp_size_in_bytes", 0)
    reporter.info(f"compiled in {seconds:.1f} s; the step needs {temporary / 2**20:.0f} MiB besides the weights")
    flops = step_flops(config, optimizer, state, mesh)
    facts = StepFacts(config.train.batch_size, flops, mesh.size, temporary)
    log.write("compiled", seconds=round(seconds, 2), temporary_bytes=temporary, step_flops=flops)
    spread, images = batch_sharding(mesh, config.model.heads), local_images(mesh, config.train.batch_size)
    eval_step = jax.jit(
        make_eval_step(apply, configured_loss(config), step_options(config)),
        in_shardings=(state_sharding(mesh, state), spread),
        out_shardings=replicated(mesh),
    )
    return Compiled(compiled, eval_step, make_predict(apply, mesh), mesh, spread, images, facts)


def lower_train_step(
    config: Config, apply: Apply, optimizer: optax.GradientTransformation, state: TrainState, mesh: Mesh
) -> jax.stages.Lowered:
    """Traces the train step of a run for a mesh.

    Args:
      config: the recipe.
      apply: the network.
      optimizer: its transform.
      state: a state, or its shapes.
      mesh: the devices; they need not be there.

    Returns:
      The step, ready to be compiled; it gives the state's memory away.
    """
    return _lower(config, apply, optimizer, state, mesh, step_options(config))


def step_flops(config: Config, optimizer: optax.GradientTransformation, state: TrainState, mesh: Mesh) -> float:
    """Counts the operations of a train step; a multiplication and an addition count as two.

    The count is that of the whole batch at once with XLA's convolutions, whatever the backend, since XLA counts the
    body of a loop once. Arguments are those of `lower_train_step`.

    Returns:
      Operations on all devices together; NaN where XLA does not count.
    """
    apply, _, _ = build_abstract(config.model.name, **_network_options(config))
    lowered = _lower(config, apply, optimizer, state, mesh, step_options(config)._replace(num_parts=1))
    return float((lowered.cost_analysis() or {}).get("flops", math.nan))


def _lower(
    config: Config,
    apply: Apply,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    mesh: Mesh,
    rules: StepOptions,
) -> jax.stages.Lowered:
    everywhere, places = replicated(mesh), state_sharding(mesh, state)
    step = jax.jit(
        make_train_step(apply, optimizer, configured_loss(config), rules),
        donate_argnums=0,
        in_shardings=(places, batch_sharding(mesh, config.model.heads), everywhere),
        out_shardings=(places, everywhere),
    )
    batch = abstract_batch(config.train.batch_size, config.model.image_size, heads=config.model.heads)
    return step.lower(state, batch, jax.ShapeDtypeStruct((), np.float32))


def configured_network(config: Config, *, backend: Backend = "xla") -> tuple[Apply, Params, ModelState]:
    """Builds the network with its initial weights, which depend on `train.seed` alone.

    Args:
      config: the recipe.
      backend: target of the program: `backend_for` the mesh.
    """
    keras.utils.set_random_seed(config.train.seed)
    return functionalize(build_model(config.model.name, **_network_options(config), backend=backend))


def _network_options(config: Config) -> dict[str, Any]:
    return {
        "image_size": config.model.image_size,
        "args": config.model.args,
        "dtype": config.runtime.precision,
        "num_maps": num_maps(config.model.heads),
    }


def configured_optimizer(config: Config) -> optax.GradientTransformation:
    """Returns the optimizer, without the learning rate."""
    return make_optimizer(clip_value=config.train.clip_value, weight_decay=config.train.weight_decay)


def configured_loss(config: Config) -> Loss:
    """Returns the mask's loss with its arguments."""
    return functools.partial(LOSSES[config.train.loss], **config.train.loss_args)


def step_options(config: Config) -> StepOptions:
    """Returns what the steps of a run follow."""
    train = config.train
    return StepOptions(
        seed=train.seed,
        threshold=config.eval.threshold,
        deep_supervision_weight=train.deep_supervision_weight,
        l2_penalty=train.l2_penalty,
        lr_multipliers=train.lr_multipliers,
        heads=config.model.heads,
        head_weights=train.head_weights,
        touching_weight=train.touching_weight,
        batch_norm_warmup=train.batch_norm_warmup,
        ema_decay=train.ema_decay,
        num_parts=train.grad_accum_steps,
        remat=config.runtime.remat,
    )
