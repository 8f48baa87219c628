"""Losses from logits.

Per-image losses return one value per image. `LOSSES` holds what a config can name: functions of
`(logits, masks, valid)` that return the scalar to minimise. Padding (`valid == 0`) never counts.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from cervseg_jax.typing import typechecked

Loss = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


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
def soft_dice_loss(
    logits: Float[Array, "b h w 1"], masks: Float[Array, "b h w 1"], *, smooth: float = 1.0
) -> Float[Array, " b"]:
    """Soft Dice loss of the nucleus class, one value per image.

    Sums run in float32 even for bfloat16 logits. An image without nuclei gives `p / (p + smooth)` for a
    predicted area of `p` pixels: near 1 until the prediction is almost empty.

    Args:
      logits: raw network outputs.
      masks: targets in [0, 1]; soft edges are allowed.
      smooth: pixels added to numerator and denominator; must be positive.

    Returns:
      Losses in [0, 1).

    Raises:
      ValueError: if `smooth` is not positive.

    Reference: Milletari et al. 2016, arXiv:1606.04797, with linear instead of squared sums.
    """
    if smooth <= 0:
        raise ValueError(f"soft_dice_loss: smooth must be positive, got {smooth}")
    probs = jax.nn.sigmoid(logits.astype(jnp.float32))
    intersection = (probs * masks).sum(axis=(1, 2, 3))
    total = probs.sum(axis=(1, 2, 3)) + masks.sum(axis=(1, 2, 3))
    return 1.0 - (2.0 * intersection + smooth) / (total + smooth)


@typechecked
def dice_coef(
    logits: Float[Array, "b h w 1"], masks: Float[Array, "b h w 1"], valid: Float[Array, " b"]
) -> Float[Array, ""]:
    """Soft Dice of the whole batch pooled into one image, with a smoothing of one pixel.

    The value depends on which images share a batch: kept for comparison with the reference implementation,
    whose training loss and published score it is. For a score that means something use `dice_mean`.

    Args:
      logits: raw network outputs.
      masks: targets in [0, 1].
      valid: 1 for real images, 0 for padding.

    Returns:
      A value in (0, 1].
    """
    intersection, probs_sum, masks_sum = _pooled_sums(logits, masks, valid)
    return (2.0 * intersection + 1.0) / (probs_sum + masks_sum + 1.0)


@typechecked
def iou_coef(
    logits: Float[Array, "b h w 1"], masks: Float[Array, "b h w 1"], valid: Float[Array, " b"]
) -> Float[Array, ""]:
    """Soft intersection over union of the pooled batch, without smoothing, as in the reference implementation.

    Args:
      logits: raw network outputs.
      masks: targets in [0, 1].
      valid: 1 for real images, 0 for padding.

    Returns:
      A value in [0, 1]; NaN where masks and probabilities are all exactly zero.
    """
    intersection, probs_sum, masks_sum = _pooled_sums(logits, masks, valid)
    return intersection / (probs_sum + masks_sum - intersection)


def _pooled_sums(logits: jax.Array, masks: jax.Array, valid: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    weight = valid[:, None, None, None]
    probs = jax.nn.sigmoid(logits.astype(jnp.float32)) * weight
    return (probs * masks).sum(), probs.sum(), (masks * weight).sum()


def _mean_over_valid(values: jax.Array, valid: jax.Array) -> jax.Array:
    return (values * valid).sum() / jnp.maximum(valid.sum(), 1.0)


def _bce(logits: jax.Array, masks: jax.Array, valid: jax.Array) -> jax.Array:
    return _mean_over_valid(bce_loss(logits, masks), valid)


def _soft_dice(logits: jax.Array, masks: jax.Array, valid: jax.Array) -> jax.Array:
    return _mean_over_valid(soft_dice_loss(logits, masks), valid)


def _bce_soft_dice(logits: jax.Array, masks: jax.Array, valid: jax.Array) -> jax.Array:
    return 0.5 * (_bce(logits, masks, valid) + _soft_dice(logits, masks, valid))


def _dice(logits: jax.Array, masks: jax.Array, valid: jax.Array) -> jax.Array:
    return 1.0 - dice_coef(logits, masks, valid)


def _bce_dice(logits: jax.Array, masks: jax.Array, valid: jax.Array) -> jax.Array:
    return 0.5 * (_bce(logits, masks, valid) + _dice(logits, masks, valid))


def _iou(logits: jax.Array, masks: jax.Array, valid: jax.Array) -> jax.Array:
    return 1.0 - iou_coef(logits, masks, valid)


def _bce_iou(logits: jax.Array, masks: jax.Array, valid: jax.Array) -> jax.Array:
    return 0.5 * (_bce(logits, masks, valid) + _iou(logits, masks, valid))


LOSSES: Mapping[str, Loss] = {
    "bce": _bce,
    "soft_dice": _soft_dice,
    "bce_soft_dice": _bce_soft_dice,
    # Pooled over the batch, as the reference implementation does.
    "dice": _dice,
    "bce_dice": _bce_dice,
    "iou": _iou,
    "bce_iou": _bce_iou,
}
"""Losses by config name. `bce_soft_dice` is the per-image form of the reference's batch-pooled `bce_dice`."""
