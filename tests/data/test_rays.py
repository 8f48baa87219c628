"""Targets of the head "rays", against small steps along each ray, with SciPy's distance transform."""

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from cervseg_jax.data.rays import STRIDE, decode_lengths, directions, encode_lengths, ray_targets
from cervseg_jax.data.targets import target_maps
from cervseg_jax.extents import Extent, layers_of
from cervseg_jax.heads import NUM_RAYS

SHAPE = (70, 90)


@pytest.fixture
def nuclei():
    """A large disc, a smaller one that covers a part of it, one across the image's edge, and one apart."""
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]]
    places = ((30, 30, 15), (38, 45, 10), (3, 70, 9), (55, 75, 8))
    return [np.hypot(rows - row, 1.3 * (columns - column)) <= radius for row, column, radius in places]


@pytest.fixture
def maps(nuclei):
    whole = {label: Extent(0, 0, nucleus) for label, nucleus in enumerate(nuclei, start=1)}
    return ray_targets(*layers_of(whole, shape=SHAPE))


def walked(nucleus, row, column, step):
    """Length of a ray in steps of a tenth of a pixel; NaN where it leaves the image first."""
    length = 0.0
    while True:
        length += 0.1
        y, x = round(row + length * step[0]), round(column + length * step[1])
        if not (0 <= y < SHAPE[0] and 0 <= x < SHAPE[1]):
            return np.nan
        if not nucleus[y, x]:
            return length


def test_centrality_is_the_largest_relative_depth(nuclei, maps):
    depths = []
    for nucleus in nuclei:
        depth = distance_transform_edt(nucleus)  # the image's edge is no border of a nucleus
        depths.append(np.where(nucleus, depth / depth.max(), 0))
    np.testing.assert_allclose(maps[..., 0] / 255, np.max(depths, axis=0), atol=0.02)


def test_rays_end_where_the_deepest_nucleus_ends_even_if_it_is_covered(nuclei, maps):
    depths = np.stack([distance_transform_edt(nucleus) / distance_transform_edt(nucleus).max() for nucleus in nuclei])
    known = np.argwhere(maps[..., 1:].any(axis=2))
    assert len(known) > 100
    assert (known % STRIDE == 0).all()
    errors = []
    for row, column in known[::9]:
        nucleus = nuclei[int(depths[:, row, column].argmax())]
        for ray, step in enumerate(directions()):
            expected, got = walked(nucleus, row, column, step), maps[row, column, 1 + ray]
            if np.isnan(expected) or got == 0:
                assert np.isnan(expected) == (got == 0)
            else:
                errors.append(decode_lengths(got / 255) - expected)
    # Steps are rounded to pixels: a ray along an edge may end a pixel sooner or later.
    assert np.abs(errors).max() < 1.8
    assert np.abs(errors).mean() < 0.3
    assert abs(np.mean(errors)) < 0.1


def test_the_directions_turn_clockwise_from_the_right():
    steps = directions()
    assert steps.shape == (NUM_RAYS, 2)
    np.testing.assert_allclose(steps[0], (0, 1), atol=1e-12)
    np.testing.assert_allclose(steps[NUM_RAYS // 4], (1, 0), atol=1e-12)


def test_lengths_come_back():
    lengths = np.array([0.0, 0.5, 8.0, 90.0])
    np.testing.assert_allclose(decode_lengths(encode_lengths(lengths)), lengths)
    assert np.isfinite(decode_lengths(np.array(1.0)))


def test_an_empty_image_has_no_rays():
    assert not target_maps(np.zeros((20, 30), np.int32), ("mask", "rays")).any()
