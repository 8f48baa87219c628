"""Which images to look at first."""

import numpy as np
from scipy.stats import spearmanr

STRIPE_ROWS = 512


def doubt(maps: np.ndarray) -> float:
    """How unsure the network is about an image: entropy of the mask's probabilities per pixel of predicted nucleus.

    Args:
      maps: probabilities [h, w, maps].

    Returns:
      Bits, at least 0; the entropy of the whole image over at least 1 pixel where no nucleus is predicted.
    """
    entropy, num_inside = 0.0, 0
    # In stripes, so that maps on disk are never in memory whole.
    for top in range(0, maps.shape[0], STRIPE_ROWS):
        probs = np.clip(np.asarray(maps[top : top + STRIPE_ROWS, :, 0], np.float64), 1e-7, 1 - 1e-7)
        entropy -= float((probs * np.log2(probs) + (1 - probs) * np.log2(1 - probs)).sum())
        num_inside += np.count_nonzero(probs >= 0.5)
    return entropy / max(1, num_inside)


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's rank correlation over the places where both are defined; NaN for fewer than three or equal values."""
    defined = ~(np.isnan(one) | np.isnan(other))
    one, other = one[defined], other[defined]
    if len(one) < 3 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return float("nan")
    return float(spearmanr(one, other)[0])  # pyright: ignore[reportArgumentType]
