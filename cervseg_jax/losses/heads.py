"""Losses of the auxiliary heads (boundary, distance, hover, rays) and of touching nuclei."""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp

from cervseg_jax.heads import RAY_UNIT_PX, Head, channels
from cervseg_jax.losses.overlap import soft_dice_loss
from cervseg_jax.losses.pixelwise import bce_loss

HUBER_DELTA = 0.05
MAX_LOG_LENGTH = 6.0
"""Rays are at most `exp` of this times `RAY_UNIT_PX` long."""


def boundary_loss(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Mean of binary cross-entropy and soft Dice loss, one value per image; inputs are [b, h, w, 1]."""
    return 0.5 * (bce_loss(logits, targets) + soft_dice_loss(logits, targets))


def distance_loss(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Huber loss of the distance, divided by its delta (close to the absolute error); one value per image."""
    error = jnp.abs(jax.nn.sigmoid(logits) - targets)
    huber = jnp.where(error <= HUBER_DELTA, 0.5 * error**2 / HUBER_DELTA, error - 0.5 * HUBER_DELTA)
    return huber.mean(axis=(1, 2, 3))


def hover_loss(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Squared error of the position maps in [-1, 1] and of their gradients along their own axis; one value per image.

    Reference: Graham et al. 2019, arXiv:1812.06499, equations 2 and 3, with differences of neighboring pixels
    as gradients.
    """
    error = 2.0 * (jax.nn.sigmoid(logits) - targets)
    horizontal, vertical = error[..., 0], error[..., 1]
    gradients = (jnp.square(jnp.diff(horizontal, axis=2)), jnp.square(jnp.diff(vertical, axis=1)))
    return jnp.square(error).mean(axis=(1, 2, 3)) + sum(gradient.mean(axis=(1, 2)) for gradient in gradients)


def rays_loss(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Cross-entropy of the centrality, plus the error of the rays relative to the size of their nucleus.

    The error of a pixel is the mean absolute error of its known rays over their mean length. Pixels weigh as much as
    they are central. Rays whose target is 0 are unknown.

    Reference: Schmidt et al. 2018, arXiv:1806.03535, equation 1, with errors relative to the size.

    Args:
      logits: [b, h, w, 1 + rays]; the length of a ray is `RAY_UNIT_PX` times the exponential of its logit.
      targets: as of `data.rays.ray_targets`, in [0, 1].

    Returns:
      One value per image.
    """
    centrality, shares = targets[..., :1], targets[..., 1:]
    known = (shares > 0).astype(jnp.float32)
    lengths = shares / (1.0 - jnp.minimum(shares, 254 / 255))
    predicted = jnp.exp(jnp.clip(logits[..., 1:], -MAX_LOG_LENGTH, MAX_LOG_LENGTH))
    count = jnp.maximum(known.sum(axis=-1), 1.0)
    error = (known * jnp.abs(predicted - lengths)).sum(axis=-1) / count
    size = jnp.maximum((known * lengths).sum(axis=-1) / count, 1.0 / RAY_UNIT_PX)
    weight = centrality[..., 0] * (known.sum(axis=-1) > 0)
    relative = (weight * error / size).sum(axis=(1, 2)) / jnp.maximum(weight.sum(axis=(1, 2)), 1e-6)
    return bce_loss(logits[..., :1], centrality) + relative


HEAD_LOSSES: Mapping[Head, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "boundary": boundary_loss,
    "distance": distance_loss,
    "hover": hover_loss,
    "rays": rays_loss,
}
"""Each maps logits and targets in [0, 1], both [b, h, w, maps], to one value per image."""


def heads_loss(
    logits: jax.Array,
    maps: jax.Array,
    known: jax.Array,
    *,
    heads: Sequence[Head],
    weights: Mapping[Head, float],
) -> jax.Array:
    """Returns the weighted sum of the losses of all heads except the mask.

    Args:
      logits: [b, h, w, maps of all heads], the mask first.
      maps: uint8 targets [b, h, w, maps of the other heads], 255 for 1.0.
      known: [b], 1 for real images with instance labels, else 0.
      heads: heads in channel order, starting with the mask.
      weights: factor per head; 1 by default.

    Returns:
      Scalar, the mean over the images with `known` 1.
    """
    targets = maps.astype(jnp.float32) / 255.0
    total = jnp.zeros(())
    for head in heads[1:]:
        span = channels(heads, head)
        values = HEAD_LOSSES[head](logits[..., span], targets[..., span.start - 1 : span.stop - 1])
        total = total + weights.get(head, 1.0) * (values * known).sum() / jnp.maximum(known.sum(), 1.0)
    return total


def touching_loss(logits: jax.Array, masks: jax.Array, touching: jax.Array, known: jax.Array) -> jax.Array:
    """Cross-entropy of the mask, restricted to the pixels between touching nuclei.

    Args:
      logits: mask logits, [b, h, w, 1].
      masks: targets in [0, 1], [b, h, w, 1].
      touching: uint8 [b, h, w, 1], 1 for pixels between touching nuclei.
      known: [b], 1 for real images with instance labels, else 0.

    Returns:
      Scalar; 0 if no pixel is selected.
    """
    weight = touching.astype(jnp.float32) * known[:, None, None, None]
    per_pixel = jnp.logaddexp(0.0, logits) - masks * logits
    return (per_pixel * weight).sum() / jnp.maximum(weight.sum(), 1.0)
