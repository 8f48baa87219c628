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
    ema_params: Params
    """Moving average of `params`; empty where none is kept."""

    @property
    def averaged_params(self) -> Params:
        """What to evaluate, show and keep: the moving average, or the params themselves."""
        return self.ema_params or self.params


def create_state(
    params: Params, model_state: ModelState, optimizer: optax.GradientTransformation, *, with_ema: bool = False
) -> TrainState:
    """Returns the state before the first update.

    Args:
      params: initial trainable variables.
      model_state: initial BatchNorm statistics.
      optimizer: the transform that will be used.
      with_ema: whether a moving average is kept.

    Returns:
      A state at step 0 that shares its arrays with the arguments.
    """
    ema = jax.tree.map(jnp.copy, params) if with_ema else {}
    return TrainState(jnp.zeros((), jnp.int32), params, model_state, optimizer.init(params), ema)
