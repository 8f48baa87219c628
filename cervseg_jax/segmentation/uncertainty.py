"""Uncertainty of a prediction, to rank images for review."""

import numpy as np
from jaxtyping import Float

from cervseg_jax.typing import typechecked

STRIPE_ROWS = 512
"""Rows that are in memory at a time."""
MIN_PROBABILITY = 0.25
"""Pixels of a lower mask probability do not count: certain background, whatever its area, says nothing."""


@typechecked
def uncertainty(maps: Float[np.ndarray, "h w maps"]) -> float:
    """Mean binary entropy of the mask probability over the pixels where it is at least 0.25.

    The bound lies below one half, so that nuclei which were missed narrowly count.

    Args:
      maps: probabilities, the mask first; may be memory-mapped.

    Returns:
      Bits per pixel in [0, 1]; the mean over all pixels where none reaches the bound.
    """
    stripes = [maps[top : top + STRIPE_ROWS, :, 0] for top in range(0, maps.shape[0], STRIPE_ROWS)]
    bits, num_pixels = 0.0, 0
    for stripe in stripes:
        selected = stripe[stripe >= MIN_PROBABILITY]
        bits += _entropy(selected)
        num_pixels += selected.size
    return bits / num_pixels if num_pixels else sum(map(_entropy, stripes)) / (maps.shape[0] * maps.shape[1])


def _entropy(probs: np.ndarray) -> float:
    """Returns the sum of the binary entropies in bits."""
    probs = np.clip(probs.astype(np.float64), 1e-7, 1 - 1e-7)
    return float(-(probs * np.log2(probs) + (1 - probs) * np.log2(1 - probs)).sum())
