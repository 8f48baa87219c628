"""Pixelwise losses: cross-entropy, focal, and boundary-weighted cross-entropy."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from cervseg_jax.typing import typechecked


@typechecked
def bce_loss(logits: Float[Array, "b h w 1"], masks: Float[Array, "b h w 1"]) -> Float[Array, " b"]:
    """Binary cross-entropy per pixel, averaged over each image.

    Computed from logits without clipping, so a confidently wrong pixel keeps its gradient.

    Args:
      logits: raw network outputs.
      masks: targets in [0, 1].

    Returns:
      Losses in [0, inf), in nats per pixel.

    Example:
      >>> bce_loss(jnp.zeros((1, 2, 2, 1)), jnp.ones((1, 2, 2, 1))).round(4).tolist()
      [0.6930999755859375]
    """
    return optax.losses.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), masks).mean(axis=(1, 2, 3))


@typechecked
def focal_loss(
    logits: Float[Array, "b h w 1"],
    masks: Float[Array, "b h w 1"],
    *,
    gamma: float = 2.0,
    nucleus_weight: float = 0.25,
) -> Float[Array, " b"]:
    """Focal loss per pixel, averaged over each image: down-weights pixels that are classified with confidence.

    Args:
      logits: raw network outputs.
      masks: targets in [0, 1].
      gamma: focusing exponent; 0 is class-weighted cross-entropy.
      nucleus_weight: weight of nucleus pixels, in [0, 1]; background pixels have `1 - nucleus_weight`.

    Returns:
      Losses in [0, inf).

    Reference: Lin et al. 2017, arXiv:1708.02002, equation 5.
    """
    scores = logits.astype(jnp.float32)
    # 1 - p_t, computed from the logit to avoid cancellation.
    uncertainty = jax.nn.sigmoid(-scores * (2.0 * masks - 1.0))
    weight = nucleus_weight * masks + (1.0 - nucleus_weight) * (1.0 - masks)
    losses = weight * uncertainty**gamma * optax.losses.sigmoid_binary_cross_entropy(scores, masks)
    return losses.mean(axis=(1, 2, 3))


@typechecked
def boundary_bce_loss(
    logits: Float[Array, "b h w 1"], masks: Float[Array, "b h w 1"], *, width_px: int = 2, boundary_weight: float = 5.0
) -> Float[Array, " b"]:
    """Cross-entropy per pixel with a higher weight near nucleus borders; weighted mean over each image.

    Args:
      logits: raw network outputs.
      masks: targets in [0, 1].
      width_px: half-width of the weighted band around a border, as chessboard distance in pixels.
      boundary_weight: weight within the band; it is 1 elsewhere.

    Returns:
      Losses in [0, inf).

    Reference: adapted from Ronneberger et al. 2015, arXiv:1505.04597, section 3, with a band instead of a distance map.
    """
    side = 2 * width_px + 1
    window, strides = (1, side, side, 1), (1, 1, 1, 1)
    local_max = jax.lax.reduce_window(masks, -jnp.inf, jax.lax.max, window, strides, "SAME")
    local_min = jax.lax.reduce_window(masks, jnp.inf, jax.lax.min, window, strides, "SAME")
    weights = 1.0 + (boundary_weight - 1.0) * (local_max - local_min)
    losses = weights * optax.losses.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), masks)
    return losses.sum(axis=(1, 2, 3)) / weights.sum(axis=(1, 2, 3))
