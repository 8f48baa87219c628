"""Segmentation losses on logits, and the table of losses that a config can name.

Per-image losses return one value per image. The functions in `LOSSES` take `(logits, masks, valid)` and keyword
arguments of their own, and return the scalar to minimize. Padding images (`valid == 0`) are ignored.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from pydantic import Field

from cervseg_jax.losses.overlap import dice_coef, iou_coef, lovasz_loss, soft_dice_loss, tversky_loss
from cervseg_jax.losses.pixelwise import bce_loss, boundary_bce_loss, focal_loss
from cervseg_jax.losses.similarity import ssim_loss
from cervseg_jax.schema import PositiveFloat

__all__ = [
    "LOSSES",
    "SUPPLIED",
    "Loss",
    "bce_loss",
    "boundary_bce_loss",
    "dice_coef",
    "focal_loss",
    "iou_coef",
    "lovasz_loss",
    "soft_dice_loss",
    "ssim_loss",
    "tversky_loss",
]

Loss = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""Maps logits, masks and valid to a scalar."""

NonNegative = Annotated[float, Field(ge=0.0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]

SUPPLIED = ("logits", "masks", "valid")
"""Parameters that the training step passes; a config sets the others in `train.loss_args`."""


def _mean_over_valid(values: jax.Array, valid: jax.Array) -> jax.Array:
    return (values * valid).sum() / jnp.maximum(valid.sum(), 1.0)


def _bce(logits: jax.Array, masks: jax.Array, valid: jax.Array) -> jax.Array:
    return _mean_over_valid(bce_loss(logits, masks), valid)


def _soft_dice(logits: jax.Array, masks: jax.Array, valid: jax.Array, *, smooth: PositiveFloat = 1.0) -> jax.Array:
    return _mean_over_valid(soft_dice_loss(logits, masks, smooth=smooth), valid)


def _bce_soft_dice(
    logits: jax.Array, masks: jax.Array, valid: jax.Array, *, smooth: PositiveFloat = 1.0, dice_share: Share = 0.5
) -> jax.Array:
    dice = _soft_dice(logits, masks, valid, smooth=smooth)
    return (1.0 - dice_share) * _bce(logits, masks, valid) + dice_share * dice


def _focal(
    logits: jax.Array, masks: jax.Array, valid: jax.Array, *, gamma: NonNegative = 2.0, nucleus_weight: Share = 0.25
) -> jax.Array:
    return _mean_over_valid(focal_loss(logits, masks, gamma=gamma, nucleus_weight=nucleus_weight), valid)


def _tversky(
    logits: jax.Array,
    masks: jax.Array,
    valid: jax.Array,
    *,
    false_positives: NonNegative = 0.3,
    false_negatives: NonNegative = 0.7,
    exponent: PositiveFloat = 1.0,
    smooth: PositiveFloat = 1.0,
) -> jax.Array:
    values = tversky_loss(
        logits,
        masks,
        false_positives=false_positives,
        false_negatives=false_negatives,
        exponent=exponent,
        smooth=smooth,
    )
    return _mean_over_valid(values, valid)


def _lovasz(logits: jax.Array, masks: jax.Array, valid: jax.Array) -> jax.Array:
    return _mean_over_valid(lovasz_loss(logits, masks), valid)


def _boundary_bce(
    logits: jax.Array,
    masks: jax.Array,
    valid: jax.Array,
    *,
    width_px: Annotated[int, Field(ge=1, le=50)] = 2,
    boundary_weight: Annotated[float, Field(ge=1.0)] = 5.0,
) -> jax.Array:
    values = boundary_bce_loss(logits, masks, width_px=width_px, boundary_weight=boundary_weight)
    return _mean_over_valid(values, valid)


def _dice(logits: jax.Array, masks: jax.Array, valid: jax.Array) -> jax.Array:
    return 1.0 - dice_coef(logits, masks, valid)


def _bce_dice(logits: jax.Array, masks: jax.Array, valid: jax.Array) -> jax.Array:
    return 0.5 * (_bce(logits, masks, valid) + _dice(logits, masks, valid))


def _iou(logits: jax.Array, masks: jax.Array, valid: jax.Array) -> jax.Array:
    return 1.0 - iou_coef(logits, masks, valid)


def _bce_iou(logits: jax.Array, masks: jax.Array, valid: jax.Array) -> jax.Array:
    return 0.5 * (_bce(logits, masks, valid) + _iou(logits, masks, valid))


def _basnet_hybrid(logits: jax.Array, masks: jax.Array, valid: jax.Array) -> jax.Array:
    similarity = _mean_over_valid(ssim_loss(logits, masks), valid)
    return (_bce(logits, masks, valid) + similarity + _iou(logits, masks, valid)) / 3.0


LOSSES: Mapping[str, Callable[..., Any]] = {
    "bce": _bce,
    "soft_dice": _soft_dice,
    "bce_soft_dice": _bce_soft_dice,
    "focal": _focal,
    "tversky": _tversky,
    "lovasz": _lovasz,
    "boundary_bce": _boundary_bce,
    # Pooled over the batch, as in the reference implementation.
    "dice": _dice,
    "bce_dice": _bce_dice,
    "iou": _iou,
    "bce_iou": _bce_iou,
    "basnet_hybrid": _basnet_hybrid,
}
"""Losses by config name. `bce_soft_dice` is the per-image form of the reference's batch-pooled `bce_dice`."""
