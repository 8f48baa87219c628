"""The training state as one pytree."""

from dataclasses import dataclass, replace
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


@jax.jit
def mix_weights(state: TrainState, params: Params, model_state: ModelState, share: float) -> TrainState:
    """Returns a state whose averaged parameters and BatchNorm statistics are mixed with others.

    Weights between those before and after the adaptation to few images do as well on images like these, and forget less
    of others.

    Reference: Wortsman et al. 2022, arXiv:2109.01903, section 3.

    Args:
      state: state of the training.
      params: the other parameters, such as the initial ones.
      model_state: the other BatchNorm statistics.
      share: share of the others, 0..1.

    Returns:
      A state for evaluation; it cannot be trained further.
    """

    def mix(own: Any, others: Any) -> Any:
        return jax.tree.map(lambda a, b: ((1 - share) * a + share * b).astype(a.dtype), own, others)

    mixed = mix(state.averaged_params, params)
    weights = {"ema_params": mixed} if state.ema_params else {"params": mixed}
    return replace(state, model_state=mix(state.model_state, model_state), **weights)
