"""Losses that look at each pixel alone: cross-entropy, focal, and with weights along the border."""

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
    """Focal loss per pixel, averaged over each image: cross-entropy with less weight where the network is sure.

    Args:
      logits: raw network outputs.
      masks: targets in [0, 1].
      gamma: how fast the weight falls; 0 is cross-entropy.
      nucleus_weight: share of nucleus pixels' weight; background gets the rest.

    Returns:
      Losses in [0, inf).

    Reference: Lin et al. 2017, arXiv:1708.02002, equation 5.
    """
    scores = logits.astype(jnp.float32)
    # 1 - p_t, computed on the side where it does not cancel.
    uncertainty = jax.nn.sigmoid(-scores * (2.0 * masks - 1.0))
    weight = nucleus_weight * masks + (1.0 - nucleus_weight) * (1.0 - masks)
    losses = weight * uncertainty**gamma * optax.losses.sigmoid_binary_cross_entropy(scores, masks)
    return losses.mean(axis=(1, 2, 3))


@typechecked
def boundary_bce_loss(
    logits: Float[Array, "b h w 1"], masks: Float[Array, "b h w 1"], *, width_px: int = 2, boundary_weight: float = 5.0
) -> Float[Array, " b"]:
    """Cross-entropy per pixel with more weight near the nuclei's borders, as a weighted mean over each image.

    Args:
      logits: raw network outputs.
      masks: targets in [0, 1].
      width_px: how far from a border (in chessboard distance) the weight reaches.
      boundary_weight: weight there; 1 elsewhere.

    Returns:
      Losses in [0, inf).

    Reference: after Ronneberger et al. 2015, arXiv:1505.04597, section 3, with a band instead of a distance map.
    """
    side = 2 * width_px + 1
    window, strides = (1, side, side, 1), (1, 1, 1, 1)
    highest = jax.lax.reduce_window(masks, -jnp.inf, jax.lax.max, window, strides, "SAME")
    lowest = jax.lax.reduce_window(masks, jnp.inf, jax.lax.min, window, strides, "SAME")
    weights = 1.0 + (boundary_weight - 1.0) * (highest - lowest)
    losses = weights * optax.losses.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), masks)
    return losses.sum(axis=(1, 2, 3)) / weights.sum(axis=(1, 2, 3))
