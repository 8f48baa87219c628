"""Scores of nuclei at full extent, which may overlap; all of them, and by the degree of their overlap.

They are the scores of `metrics.instance`, computed from the common pixels of whole nuclei instead of label maps.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from cervseg_jax.extents import Extent, extent_overlaps, overlap_degrees
from cervseg_jax.metrics.instance import InstanceCounts, counts_of

DEGREES: Mapping[str, tuple[float, float]] = {
    "0": (-1.0, 0.0),
    "0_10": (0.0, 0.1),
    "10_25": (0.1, 0.25),
    "25_50": (0.25, 0.5),
    "over_50": (0.5, 1.0),
}
"""Degrees of overlap by name, as shares of the smaller nucleus: above the first number, up to the second."""


def centers_of(extents: Sequence[Extent]) -> Float[np.ndarray, "n 2"]:
    """Returns row and column of each nucleus' centroid; pixel centers have whole numbers."""
    places = [np.argwhere(extent.inside).mean(axis=0) + (extent.top, extent.left) for extent in extents]
    return np.array(places, np.float64).reshape(-1, 2)


def count_whole(truth: Sequence[Extent], prediction: Sequence[Extent]) -> InstanceCounts:
    """Compares the whole nuclei of one image.

    Args:
      truth: true nuclei, none of them empty.
      prediction: predicted nuclei, likewise.

    Returns:
      The counts of one image, fields of shape [1].
    """
    return counts_of(extent_overlaps(truth, prediction), centers_of(truth), centers_of(prediction))


def count_by_degree(truth: Sequence[Extent], prediction: Sequence[Extent]) -> dict[str, InstanceCounts]:
    """Compares the whole nuclei of one image, parted by the degree to which the true ones overlap.

    A predicted nucleus counts for the degree of the true nucleus that it has most pixels in common with. One that meets
    no true nucleus counts for none of them.

    Args:
      truth: true nuclei, none of them empty.
      prediction: predicted nuclei, likewise.

    Returns:
      The counts by the names of `DEGREES`.
    """
    table, degrees = extent_overlaps(truth, prediction), overlap_degrees(truth)
    true_centers, predicted_centers = centers_of(truth), centers_of(prediction)
    return {
        name: counts_of(table, true_centers, predicted_centers, keep=(degrees > above) & (degrees <= up_to))
        for name, (above, up_to) in DEGREES.items()
    }
