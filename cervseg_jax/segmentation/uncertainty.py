"""Which images to look at first."""

import numpy as np

STRIPE_ROWS = 512
POSSIBLE = 0.25
"""Probability from which a pixel may be nucleus."""


def uncertainty(maps: np.ndarray) -> float:
    """How unsure the network is about an image: mean entropy of the mask's probabilities where nuclei may be.

    That is from a probability of 0.25 on, so that nuclei count which are missed narrowly; certain background, however
    much there is of it, does not.

    Args:
      maps: probabilities [h, w, maps].

    Returns:
      Bits per pixel in [0, 1]; of all pixels where none may be nucleus.
    """
    # In stripes, so that maps on disk are never in memory whole.
    stripes = [maps[top : top + STRIPE_ROWS, :, 0] for top in range(0, maps.shape[0], STRIPE_ROWS)]
    bits, num_possible = 0.0, 0
    for stripe in stripes:
        possible = stripe[stripe >= POSSIBLE]
        bits += _entropy(possible)
        num_possible += possible.size
    return bits / num_possible if num_possible else sum(map(_entropy, stripes)) / (maps.shape[0] * maps.shape[1])


def _entropy(probs: np.ndarray) -> float:
    """Bits of all pixels together."""
    probs = np.clip(probs.astype(np.float64), 1e-7, 1 - 1e-7)
    return float(-(probs * np.log2(probs) + (1 - probs) * np.log2(1 - probs)).sum())
