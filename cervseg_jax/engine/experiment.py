"""An experiment: the network, optimizer, loss and devices of a config, and the functions compiled from them.

Training, `compile` and `bench` all start from `build_experiment`.
"""

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import keras
import numpy as np
import optax
from jax.sharding import Mesh

from cervseg_jax.data.batch import Batch, abstract_batch, batch_sharding
from cervseg_jax.engine.cost import StepCost, out_of_memory_advice, program_flops, temporary_bytes
from cervseg_jax.engine.optimizer import make_optimizer
from cervseg_jax.engine.predict import WeightedPredict, make_predict
from cervseg_jax.engine.state import TrainState, create_state
from cervseg_jax.engine.step import StepMetrics, StepOptions, make_eval_step, make_train_step
from cervseg_jax.heads import num_maps
from cervseg_jax.losses import LOSSES, Loss
from cervseg_jax.models import Apply, Backend, backend_for, build_abstract, build_model, functionalize
from cervseg_jax.runtime.mesh import local_images, replicated, shard_arrays, state_sharding, train_mesh
from cervseg_jax.schema import DEFAULT_THRESHOLD, Config
from cervseg_jax.typing import ModelState, Params


class CompiledSteps(NamedTuple):
    """Functions of an experiment, compiled for its batch shape."""

    train_step: Callable[[TrainState, Batch, np.float32], tuple[TrainState, StepMetrics]]
    eval_step: Callable[[TrainState, Batch], StepMetrics]
    predict: WeightedPredict
    cost: StepCost


@dataclass(frozen=True)
class Experiment:
    """Everything that a train step is compiled from."""

    config: Config
    mesh: Mesh
    apply: Apply
    """The network."""
    params: Params
    """Initial trainable variables."""
    model_state: ModelState
    """Initial BatchNorm statistics."""
    optimizer: optax.GradientTransformation
    """Gradient transform without the learning rate."""
    loss: Loss
    """Loss of the mask."""

    @functools.cached_property
    def batch_sharding(self) -> Batch:
        """Placement of a batch on the mesh."""
        return batch_sharding(self.mesh, self.config.model.heads)

    @functools.cached_property
    def local_images(self) -> range:
        """Indices of the images of each batch that this process loads."""
        return local_images(self.mesh, self.config.train.batch_size)

    def initial_state(self) -> TrainState:
        """Returns the state before the first update, placed on the mesh."""
        state = self._create_state()
        return shard_arrays(state, state_sharding(self.mesh, state))

    def abstract_state(self) -> TrainState:
        """Returns shapes and types of the state; allocates nothing."""
        return jax.eval_shape(self._create_state)

    def place_batch(self, batch: Batch) -> Batch:
        """Puts this process' images of a batch on its devices."""
        batch_size = self.config.train.batch_size
        return shard_arrays(batch, self.batch_sharding, first=self.local_images.start, batch_size=batch_size)

    def lower_train_step(self) -> jax.stages.Lowered:
        """Traces the train step for the mesh; the devices need not be attached.

        Returns:
          The step, ready to be compiled. It donates the memory of the state that it is called with.
        """
        return self._lower(self.apply, step_options(self.config))

    def xla_apply(self) -> Apply:
        """Returns the network with XLA's own operations, whose costs can be counted."""
        return build_abstract(self.config.model.name, **_network_options(self.config))[0]

    def step_flops(self) -> float:
        """Counts the floating-point operations of a train step on all devices; see `program_flops`.

        The counted program computes the batch at once and with plain convolutions, because XLA counts one iteration
        of a loop and also counts the padding of other convolution implementations.
        """
        return program_flops(self._lower(self.xla_apply(), step_options(self.config)._replace(grad_accum_steps=1)))

    def compile(self) -> CompiledSteps:
        """Compiles the train step ahead of time, so that a batch of another shape is an error and not a recompilation.

        Raises:
          ConfigError: if the compiler finds that the devices have too little memory.
        """
        start = time.perf_counter()
        lowered = self.lower_train_step()
        traced = time.perf_counter()
        with out_of_memory_advice(self.config):
            train_step = lowered.compile()
        compiled = time.perf_counter()
        cost = StepCost(
            batch_size=self.config.train.batch_size,
            flops=self.step_flops(),
            num_devices=self.mesh.size,
            temporary_bytes=temporary_bytes(train_step),
            trace_seconds=traced - start,
            compile_seconds=compiled - traced,
        )
        return CompiledSteps(train_step, self._make_eval_step(), make_predict(self.apply, self.mesh), cost)

    def _create_state(self) -> TrainState:
        with_ema = self.config.train.ema_decay is not None
        return create_state(self.params, self.model_state, self.optimizer, with_ema=with_ema)

    def _lower(self, apply: Apply, options: StepOptions) -> jax.stages.Lowered:
        state = self.abstract_state()
        everywhere, state_places = replicated(self.mesh), state_sharding(self.mesh, state)
        step = jax.jit(
            make_train_step(apply, self.optimizer, self.loss, options),
            donate_argnums=0,
            in_shardings=(state_places, self.batch_sharding, everywhere),
            out_shardings=(state_places, everywhere),
        )
        model = self.config.model
        batch = abstract_batch(self.config.train.batch_size, model.image_size, heads=model.heads)
        return step.lower(state, batch, jax.ShapeDtypeStruct((), np.float32))

    def _make_eval_step(self) -> Callable[[TrainState, Batch], StepMetrics]:
        return jax.jit(
            make_eval_step(self.apply, self.loss, step_options(self.config)),
            in_shardings=(state_sharding(self.mesh, self.abstract_state()), self.batch_sharding),
            out_shardings=replicated(self.mesh),
        )


def build_experiment(
    config: Config, devices: Sequence[Any] | None = None, *, backend: Backend | None = None
) -> Experiment:
    """Builds the network with its initial weights, the optimizer, the loss and the mesh of a config.

    Args:
      config: the recipe.
      devices: devices of the mesh; None takes those of all processes. Devices of a topology that is not attached will
        do for `lower_train_step` and `abstract_state`.
      backend: target of the program; None takes `backend_for` the mesh.

    Returns:
      The experiment.

    Raises:
      ConfigError: if the mesh does not fit the devices, or the network or loss is configured wrongly.
    """
    mesh = train_mesh(config, devices)
    apply, params, model_state = functionalize(configured_model(config, backend=backend or backend_for(mesh)))
    optimizer = make_optimizer(clip_value=config.train.clip_value, weight_decay=config.train.weight_decay)
    return Experiment(config, mesh, apply, params, model_state, optimizer, configured_loss(config))


def configured_model(config: Config, *, backend: Backend = "xla") -> keras.Model:
    """Builds the Keras model; its initial weights depend on `train.seed` alone.

    Args:
      config: the recipe.
      backend: target of the program: `backend_for` the mesh.
    """
    keras.utils.set_random_seed(config.train.seed)
    return build_model(config.model.name, **_network_options(config), backend=backend)


def _network_options(config: Config) -> dict[str, Any]:
    return {
        "image_size": config.model.image_size,
        "args": config.model.args,
        "dtype": config.runtime.precision,
        "num_maps": num_maps(config.model.heads),
    }


def configured_loss(config: Config) -> Loss:
    """Returns the loss of the mask with its arguments."""
    return functools.partial(LOSSES[config.train.loss], **config.train.loss_args)


def step_options(config: Config) -> StepOptions:
    """Returns the options of the train and evaluation steps."""
    train = config.train
    return StepOptions(
        seed=train.seed,
        threshold=DEFAULT_THRESHOLD if config.infer.threshold is None else config.infer.threshold,
        deep_supervision_weight=train.deep_supervision_weight,
        l2_penalty=train.l2_penalty,
        lr_multipliers=train.lr_multipliers,
        heads=config.model.heads,
        head_weights=train.head_weights,
        touching_weight=train.touching_weight,
        batch_norm_warmup=train.batch_norm_warmup,
        ema_decay=train.ema_decay,
        grad_accum_steps=train.grad_accum_steps,
        remat=config.runtime.remat,
    )
