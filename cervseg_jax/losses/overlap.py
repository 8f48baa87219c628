"""Overlap losses: Dice, intersection over union, Tversky and Lovasz."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cervseg_jax.typing import typechecked


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

    The value depends on the composition of the batch. It is kept for comparison with the reference implementation,
    which trains with it and reports it as its score. Use `dice_mean` to evaluate a network.

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


@typechecked
def tversky_loss(
    logits: Float[Array, "b h w 1"],
    masks: Float[Array, "b h w 1"],
    *,
    false_positives: float = 0.3,
    false_negatives: float = 0.7,
    exponent: float = 1.0,
    smooth: float = 1.0,
) -> Float[Array, " b"]:
    """Soft Tversky loss: a Dice loss with separate weights for false positives and negatives; one value per image.

    Args:
      logits: raw network outputs.
      masks: targets in [0, 1].
      false_positives: weight of background predicted as nucleus; with 0.5 for both weights this is the soft Dice loss.
      false_negatives: weight of nucleus predicted as background.
      exponent: exponent of the loss; values below 1 emphasize hard images (focal Tversky).
      smooth: pixels added to numerator and denominator.

    Returns:
      Losses in [0, 1).

    Reference: Salehi et al. 2017, arXiv:1706.05721; the exponent is 1 / gamma of Abraham and Khan, arXiv:1810.07842.
    """
    probs = jax.nn.sigmoid(logits.astype(jnp.float32))
    true_pos = (probs * masks).sum(axis=(1, 2, 3))
    false_pos = (probs * (1.0 - masks)).sum(axis=(1, 2, 3))
    false_neg = ((1.0 - probs) * masks).sum(axis=(1, 2, 3))
    index = (true_pos + smooth) / (true_pos + false_positives * false_pos + false_negatives * false_neg + smooth)
    # Keeps away from zero, where exponents below 1 have an infinite gradient.
    return jnp.maximum(1.0 - index, 1e-7) ** exponent


@typechecked
def lovasz_loss(logits: Float[Array, "b h w 1"], masks: Float[Array, "b h w 1"]) -> Float[Array, " b"]:
    """Lovasz hinge: a convex surrogate for the intersection over union of each image's hard mask.

    Args:
      logits: raw network outputs.
      masks: targets in [0, 1]; values of at least 0.5 are nucleus.

    Returns:
      Losses in [0, inf).

    Reference: Berman et al. 2018, arXiv:1705.08790, sections 2 and 3.1.
    """

    def per_image(scores: jax.Array, truth: jax.Array) -> jax.Array:
        errors = 1.0 - scores * (2.0 * truth - 1.0)
        order = jnp.argsort(-errors)
        ordered = truth[order]
        union = truth.sum() + jnp.cumsum(1.0 - ordered)
        jaccard = 1.0 - (truth.sum() - jnp.cumsum(ordered)) / union
        weights = jnp.diff(jaccard, prepend=0.0)
        return (jax.nn.relu(errors[order]) * jax.lax.stop_gradient(weights)).sum()

    flat = logits.astype(jnp.float32).reshape(logits.shape[0], -1)
    return jax.vmap(per_image)(flat, (masks.reshape(flat.shape) >= 0.5).astype(jnp.float32))
