"""Structural similarity (SSIM) loss."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cervseg_jax.typing import typechecked

WINDOW, SIGMA = 11, 1.5
"""Side and standard deviation of the Gaussian window, in pixels."""


@typechecked
def ssim_loss(logits: Float[Array, "b h w 1"], masks: Float[Array, "b h w 1"]) -> Float[Array, " b"]:
    """One minus the mean structural similarity of probabilities and mask, one value per image.

    Only windows that lie entirely inside the image count.

    Args:
      logits: raw network outputs, at least 11 pixels high and wide.
      masks: targets in [0, 1].

    Returns:
      Losses in [0, 2].

    Raises:
      ValueError: if the images are smaller.

    Reference: Wang et al. 2004, doi:10.1109/TIP.2003.819861, section III-B, with k = (0.01, 0.03).
    """
    if min(logits.shape[1:3]) < WINDOW:
        raise ValueError(f"ssim_loss: images must be at least {WINDOW} pixels high and wide, got {logits.shape[1:3]}")
    probs = jax.nn.sigmoid(logits.astype(jnp.float32))
    offsets = np.arange(WINDOW) - WINDOW // 2
    taps = np.exp(-0.5 * (offsets / SIGMA) ** 2)
    kernel = jnp.asarray(np.outer(taps, taps) / taps.sum() ** 2, jnp.float32)[:, :, None, None]

    def smooth(image: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            image,
            kernel,
            (1, 1),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=jax.lax.Precision.HIGHEST,
        )

    c1, c2 = 0.01**2, 0.03**2
    mean_p, mean_m = smooth(probs), smooth(masks)
    product, squares = mean_p * mean_m, mean_p**2 + mean_m**2
    covariance, variances = smooth(probs * masks) - product, smooth(probs**2 + masks**2) - squares
    similarity = (2 * product + c1) / (squares + c1) * (2 * covariance + c2) / (variances + c2)
    return 1.0 - similarity.mean(axis=(1, 2, 3))
