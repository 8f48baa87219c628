"""Gradient transforms. The train step applies the learning rate."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax


class AdamState(NamedTuple):
    """Moments of Adam."""

    num_updates: jax.Array
    mean: optax.Params
    variance: optax.Params


def scale_by_adam_epsilon_hat(
    *, beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-7
) -> optax.GradientTransformation:
    """Adam with the epsilon outside the bias correction, as Keras computes it.

    The direction is `sqrt(1 - beta2^t) / (1 - beta1^t) * mean / (sqrt(variance) + epsilon)`. `optax.adam` adds its
    epsilon to the corrected deviation instead, which differs by a factor of up to 30 in the first steps.

    Args:
      beta1: decay of the mean.
      beta2: decay of the uncentered variance.
      epsilon: "epsilon hat" of the paper.

    Returns:
      A transform from gradients to descent directions (to be subtracted after scaling).

    Reference: Kingma and Ba 2015, arXiv:1412.6980, end of section 2.
    """

    def init(params: optax.Params) -> AdamState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return AdamState(jnp.zeros((), jnp.int32), zeros, jax.tree.map(jnp.zeros_like, params))

    def update(
        updates: optax.Updates, state: AdamState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, AdamState]:
        num_updates = state.num_updates + 1
        mean = jax.tree.map(lambda m, g: beta1 * m + (1 - beta1) * g, state.mean, updates)
        variance = jax.tree.map(lambda v, g: beta2 * v + (1 - beta2) * g * g, state.variance, updates)
        correction = jnp.sqrt(1 - jnp.float32(beta2) ** num_updates) / (1 - jnp.float32(beta1) ** num_updates)
        direction = jax.tree.map(lambda m, v: correction * m / (jnp.sqrt(v) + epsilon), mean, variance)
        return direction, AdamState(num_updates, mean, variance)

    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]


def make_optimizer(*, clip_value: float | None, weight_decay: float = 0.0) -> optax.GradientTransformation:
    """Returns element-wise gradient clipping followed by Adam with decoupled weight decay (AdamW).

    Args:
      clip_value: each gradient element is clipped to [-clip_value, clip_value]; None disables clipping.
      weight_decay: multiple of each kernel that is added to its direction; biases and normalizations do not decay.

    Returns:
      A transform without the learning rate.
    """
    clip = optax.identity() if clip_value is None else optax.clip(clip_value)
    adam = optax.chain(clip, scale_by_adam_epsilon_hat())
    if weight_decay == 0:
        return adam
    # Loshchilov and Hutter 2019, arXiv:1711.05101.
    return optax.chain(adam, optax.add_decayed_weights(weight_decay, mask=kernels))


def kernels(params: optax.Params) -> optax.Params:
    """Returns a mask of the kernels: variables with more than one axis."""
    return jax.tree.map(lambda param: param.ndim > 1, params)
