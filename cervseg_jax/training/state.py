"""Everything that training changes, in one pytree."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from cervseg_jax.typing import ModelState, Params


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """State of the training after `step` optimizer updates."""

    step: jax.Array
    """int32 scalar."""
    params: Params
    model_state: ModelState
    opt_state: Any
    """State of the optax transform."""


def create_state(params: Params, model_state: ModelState, optimizer: optax.GradientTransformation) -> TrainState:
    """Returns the state before the first update.

    Args:
      params: initial trainable variables.
      model_state: initial BatchNorm statistics.
      optimizer: the transform that will be used.

    Returns:
      A state at step 0 that shares its arrays with the arguments.
    """
    return TrainState(jnp.zeros((), jnp.int32), params, model_state, optimizer.init(params))
