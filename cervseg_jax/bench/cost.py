"""What a network costs: parameters, operations, memory and time of a train step on this machine."""

import statistics
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import keras
import numpy as np

from cervseg_jax.data.batch import Batch, abstract_batch
from cervseg_jax.engine.optimizer import make_optimizer
from cervseg_jax.engine.state import create_state
from cervseg_jax.engine.step import StepOptions, make_train_step
from cervseg_jax.losses import LOSSES
from cervseg_jax.models import Apply, backend_for, build_abstract, functionalize
from cervseg_jax.runtime.mesh import make_mesh
from cervseg_jax.schema import MeshConfig

NUM_WARM, NUM_TIMED = 1, 5


class Cost(NamedTuple):
    """What training a network at one batch shape takes."""

    trainable: int
    """Trainable numbers."""
    fixed: int
    """BatchNorm statistics and frozen numbers."""
    forward_flops: float
    """Of the forward pass, a multiplication and an addition counting two; from the program before optimization."""
    step_flops: float
    """Likewise of a whole train step."""
    activation_bytes: int
    """Temporary memory of the compiled train step, besides weights, optimizer and batch."""
    compile_seconds: float
    step_seconds: tuple[float, ...]
    """Of each timed step."""

    @property
    def median_seconds(self) -> float:
        """Median time of a step."""
        return statistics.median(self.step_seconds)

    def to_json(self) -> dict[str, Any]:
        """Returns JSON values."""
        return self._asdict() | {"median_seconds": self.median_seconds}


def measure_cost(model: keras.Model, args: Mapping[str, Any], *, batch_size: int) -> Cost:
    """Compiles and times train steps on random images.

    Args:
      model: the network; its input size counts.
      args: the arguments that it was built with.
      batch_size: images per step.

    Returns:
      The figures, on JAX's default device.
    """
    plain, params, model_state = functionalize(model)
    height, width, channels = model.inputs[0].shape[1:]
    backend = backend_for(make_mesh(MeshConfig(), batch_size=batch_size))
    apply, _, _ = build_abstract(model.name, image_size=(height, width), args=args, backend=backend)
    optimizer = make_optimizer(clip_value=None)
    state = create_state(params, model_state, optimizer)
    trainable = sum(value.size for value in params.values())
    fixed = sum(value.size for value in model_state.values())
    shapes = abstract_batch(batch_size, (height, width), num_channels=channels)
    forward = jax.jit(plain).lower(params, model_state, shapes.image)

    def lower(apply: Apply) -> jax.stages.Lowered:
        step = jax.jit(make_train_step(apply, optimizer, LOSSES["bce_dice"], StepOptions()), donate_argnums=0)
        return step.lower(state, shapes, jax.ShapeDtypeStruct((), np.float32))

    lowered = lower(apply)
    start = time.perf_counter()
    compiled = lowered.compile()
    compile_seconds = time.perf_counter() - start

    rng = np.random.default_rng(0)
    batch = Batch(
        image=jnp.asarray(rng.integers(0, 256, shapes.image.shape, np.uint8)),
        mask=jnp.asarray(rng.random(shapes.mask.shape) < 0.3, jnp.uint8),
        valid=jnp.ones(batch_size),
        image_id=jnp.arange(batch_size, dtype=jnp.int32),
        vote=jnp.zeros(batch_size, jnp.uint8),
    )
    seconds = []
    for _ in range(NUM_WARM + NUM_TIMED):
        start = time.perf_counter()
        state, metrics = compiled(state, batch, np.float32(1e-4))
        jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - start)
    return Cost(
        trainable=trainable,
        fixed=fixed,
        forward_flops=_flops(forward),
        step_flops=_flops(lower(plain)),
        activation_bytes=int(getattr(compiled.memory_analysis(), "temp_size_in_bytes", 0)),
        compile_seconds=compile_seconds,
        step_seconds=tuple(seconds[NUM_WARM:]),
    )


def _flops(lowered: Any) -> float:
    return float((lowered.cost_analysis() or {}).get("flops", float("nan")))
