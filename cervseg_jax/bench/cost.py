"""Cost of a network: parameters, operations, memory and time of a train step on this machine."""

import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from cervseg_jax.bench.subject import random_batch
from cervseg_jax.data.batch import abstract_batch
from cervseg_jax.engine.cost import program_flops
from cervseg_jax.engine.experiment import build_experiment
from cervseg_jax.schema import Config, DataConfig, MeshConfig, ModelConfig, RuntimeConfig, TrainConfig

NUM_WARMUP, NUM_TIMED = 1, 5


class Cost(NamedTuple):
    """Cost of training a network with one batch shape."""

    trainable: int
    """Number of trainable parameters."""
    fixed: int
    """Number of BatchNorm statistics and frozen parameters."""
    forward_flops: float
    """Floating-point operations of the forward pass; a multiply-add counts as two."""
    step_flops: float
    """Floating-point operations of a train step."""
    activation_bytes: int
    """Temporary memory of the train step in addition to weights, optimizer state and batch."""
    compile_seconds: float
    step_seconds: tuple[float, ...]
    """Duration of each timed step."""

    @property
    def median_seconds(self) -> float:
        """Median duration of a step."""
        return statistics.median(self.step_seconds)

    def to_json(self) -> dict[str, Any]:
        """Returns JSON values."""
        return self._asdict() | {"median_seconds": self.median_seconds}


def cost_config(name: str, args: Mapping[str, Any], image_size: tuple[int, int], *, batch_size: int) -> Config:
    """Returns a config that trains a network with its defaults on one device; it has no data.

    Args:
      name: key of `MODELS`.
      args: arguments of the model.
      image_size: height and width.
      batch_size: images per step.
    """
    return Config(
        model=ModelConfig(name=name, image_size=image_size, args=dict(args)),
        data=DataConfig(root=Path()),
        train=TrainConfig(epochs=1, batch_size=batch_size, learning_rate=1e-4, loss="bce_dice"),
        runtime=RuntimeConfig(mesh=MeshConfig()),
    )


def measure_cost(config: Config) -> Cost:
    """Compiles and times train steps on random images.

    Args:
      config: the recipe.

    Returns:
      The cost on the config's mesh.
    """
    experiment = build_experiment(config)
    shapes = abstract_batch(config.train.batch_size, config.model.image_size, heads=config.model.heads)
    forward = jax.jit(experiment.xla_apply()).lower(experiment.params, experiment.model_state, shapes.image)
    steps = experiment.compile()
    state, batch = experiment.initial_state(), experiment.place_batch(random_batch(config))
    seconds = []
    for _ in range(NUM_WARMUP + NUM_TIMED):
        start = time.perf_counter()
        state, metrics = steps.train_step(state, batch, np.float32(config.train.learning_rate))
        jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - start)
    return Cost(
        trainable=sum(value.size for value in experiment.params.values()),
        fixed=sum(value.size for value in experiment.model_state.values()),
        forward_flops=program_flops(forward),
        step_flops=steps.cost.flops,
        activation_bytes=steps.cost.temporary_bytes,
        compile_seconds=steps.cost.compile_seconds,
        step_seconds=tuple(seconds[NUM_WARMUP:]),
    )
