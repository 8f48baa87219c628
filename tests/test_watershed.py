"""The watershed: against scikit-image, and on figures whose answer is known."""

import numpy as np
from scipy.ndimage import gaussian_filter
from skimage.measure import label as connected_parts
from skimage.morphology import h_maxima
from skimage.segmentation import watershed

from cervseg_jax.metrics.instance import aji, count_instances
from cervseg_jax.watershed import watershed_labels


def test_basins_equal_the_watershed_of_scikit_image(rng):
    """The same peaks, and the same areas except for pixels on saddles."""
    for _ in range(20):
        elevation = gaussian_filter(rng.random((80, 100)), 5)
        elevation = ((elevation - elevation.min()) / np.ptp(elevation) + 0.2).astype(np.float32)
        inside = elevation > 0.45
        ours = watershed_labels(elevation, inside, min_saddle_depth=0.0)
        peaks = connected_parts(h_maxima(np.where(inside, elevation, 0), 1e-6))
        theirs = watershed(-elevation, peaks * inside, mask=inside, connectivity=2)
        assert ours.max() > 0
        assert len(np.unique(ours[inside])) == len(np.unique(theirs[inside]))
        assert aji(count_instances(theirs, ours))[0] > 0.9


def test_shallow_saddles_merge_and_deep_ones_separate():
    columns = np.arange(60)
    profile = np.maximum(1.0 - np.abs(columns - 15) / 20, 0.9 - np.abs(columns - 40) / 20).astype(np.float32)
    elevation = np.tile(profile, (5, 1))
    inside = elevation > 0.1
    saddle = elevation[0, 15:40].min()
    depth = float(1 - saddle / 0.9)
    assert len(np.unique(watershed_labels(elevation, inside, min_saddle_depth=depth - 0.02)[inside])) == 2
    assert len(np.unique(watershed_labels(elevation, inside, min_saddle_depth=depth + 0.02)[inside])) == 1


def test_plateaus_have_one_peak():
    elevation = np.ones((12, 14), np.float32)
    inside = np.zeros((12, 14), bool)
    inside[2:9, 1:5] = inside[2:4, 1:13] = inside[2:9, 10:13] = True  # a U
    assert len(np.unique(watershed_labels(elevation, inside, min_saddle_depth=0.0)[inside])) == 1
