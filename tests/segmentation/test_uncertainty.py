"""Doubt: high where the network is unsure."""

import numpy as np
import pytest

from cervseg_jax.segmentation.uncertainty import uncertainty


def test_uncertainty_is_the_mean_entropy_where_nuclei_may_be():
    probs = np.zeros((10, 10, 1))
    probs[:4] = 1
    assert uncertainty(probs) == pytest.approx(0, abs=1e-3)
    probs[0] = 0.5  # ten pixels of one bit each, among forty that may be nucleus
    assert uncertainty(probs) == pytest.approx(10 / 40, abs=1e-3)
    probs[5:] = 0.11  # unsure background is none of them
    assert uncertainty(probs) == pytest.approx(10 / 40, abs=1e-3)
    assert uncertainty(np.full((4, 4, 1), 0.25)) == pytest.approx(0.811278, rel=1e-4)
    assert uncertainty(np.full((4, 4, 1), 0.11)) == pytest.approx(0.499916, rel=1e-4)  # nothing may be nucleus


def test_uncertainty_of_a_large_map_is_that_of_its_stripes():
    probs = np.random.default_rng(0).beta(0.3, 0.9, (1300, 40, 1))
    bits = -(probs * np.log2(probs) + (1 - probs) * np.log2(1 - probs))
    assert uncertainty(probs) == pytest.approx(bits[probs >= 0.25].mean(), rel=1e-4)
