"""Losses of the heads besides the mask."""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp

from cervseg_jax.heads import Head, channels
from cervseg_jax.losses.overlap import soft_dice_loss
from cervseg_jax.losses.pixelwise import bce_loss

HUBER_DELTA = 0.05


def boundary_loss(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Mean of cross-entropy and soft Dice loss, one value per image; [b, h, w, 1] each."""
    return 0.5 * (bce_loss(logits, targets) + soft_dice_loss(logits, targets))


def distance_loss(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Huber loss of the distance over its delta: near the absolute error; one value per image."""
    error = jnp.abs(jax.nn.sigmoid(logits) - targets)
    huber = jnp.where(error <= HUBER_DELTA, 0.5 * error**2 / HUBER_DELTA, error - 0.5 * HUBER_DELTA)
    return huber.mean(axis=(1, 2, 3))


def hover_loss(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Squared error of places in [-1, 1] and of their slopes along their own axis; one value per image.

    Reference: Graham et al. 2019, arXiv:1812.06499, equations 2 and 3, with differences of neighbors for slopes.
    """
    error = 2.0 * (jax.nn.sigmoid(logits) - targets)
    across, down = error[..., 0], error[..., 1]
    slopes = (jnp.square(jnp.diff(across, axis=2)), jnp.square(jnp.diff(down, axis=1)))
    return jnp.square(error).mean(axis=(1, 2, 3)) + sum(slope.mean(axis=(1, 2)) for slope in slopes)


HEAD_LOSSES: Mapping[Head, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "boundary": boundary_loss,
    "distance": distance_loss,
    "hover": hover_loss,
}
"""From logits and targets in [0, 1], [b, h, w, maps] each, to one value per image."""


def heads_loss(
    logits: jax.Array,
    maps: jax.Array,
    known: jax.Array,
    *,
    heads: Sequence[Head],
    weights: Mapping[Head, float],
) -> jax.Array:
    """Adds the losses of all heads but the mask.

    Args:
      logits: [b, h, w, maps of all heads], the mask first.
      maps: uint8 targets [b, h, w, maps of the others], 255 for 1.0.
      known: [b], 1 for real images that have instance labels.
      heads: what the channels are.
      weights: factors by head; 1 where one is not named.

    Returns:
      Scalar; the mean over the images that count.
    """
    targets = maps.astype(jnp.float32) / 255.0
    total = jnp.zeros(())
    for head in heads[1:]:
        where = channels(heads, head)
        values = HEAD_LOSSES[head](logits[..., where], targets[..., where.start - 1 : where.stop - 1])
        total = total + weights.get(head, 1.0) * (values * known).sum() / jnp.maximum(known.sum(), 1.0)
    return total


def touching_loss(logits: jax.Array, masks: jax.Array, touching: jax.Array, known: jax.Array) -> jax.Array:
    """Cross-entropy of the mask over the pixels between touching nuclei alone.

    Args:
      logits: of the mask, [b, h, w, 1].
      masks: targets in [0, 1], likewise.
      touching: uint8 [b, h, w, 1], 1 for pixels that count.
      known: [b], 1 for images that count.

    Returns:
      Scalar; 0 where no pixel counts.
    """
    weight = touching.astype(jnp.float32) * known[:, None, None, None]
    per_pixel = jnp.logaddexp(0.0, logits) - masks * logits
    return (per_pixel * weight).sum() / jnp.maximum(weight.sum(), 1.0)
