"""The training state as one pytree."""

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
    """Moving average of `params`; empty if none is kept."""

    @property
    def averaged_params(self) -> Params:
        """Parameters to evaluate and to save: the moving average, or `params` if there is none."""
        return self.ema_params or self.params


def create_state(
    params: Params, model_state: ModelState, optimizer: optax.GradientTransformation, *, with_ema: bool = False
) -> TrainState:
    """Returns the state before the first update.

    Args:
      params: initial trainable variables.
      model_state: initial BatchNorm statistics.
      optimizer: the gradient transform.
      with_ema: whether to keep a moving average of the parameters.

    Returns:
      A state at step 0 that shares its arrays with the arguments.
    """
    ema = jax.tree.map(jnp.copy, params) if with_ema else {}
    return TrainState(jnp.zeros((), jnp.int32), params, model_state, optimizer.init(params), ema)
