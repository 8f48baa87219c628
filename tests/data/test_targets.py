"""Targets of the heads, against loops over nuclei with SciPy."""

import numpy as np
import pytest
from scipy.ndimage import binary_dilation, distance_transform_edt

from cervseg_jax.data.targets import target_maps, touching_pixels


@pytest.fixture
def labels(rng):
    rows, columns = np.mgrid[:60, :80]
    labels = np.zeros((60, 80), np.int32)
    for label in (3, 70_000, 9, 12):
        row, column = rng.uniform(10, 50), rng.uniform(10, 70)
        labels[np.hypot(rows - row, columns - column) < rng.uniform(8, 14)] = label
    return labels


def nuclei_of(labels):
    return [labels == label for label in np.unique(labels[labels > 0])]


def depth_of(nucleus):
    """To the nearest pixel outside; beyond the image's border is nothing."""
    return distance_transform_edt(nucleus)


def test_boundary_is_what_lies_within_two_pixels_of_something_else(labels):
    (boundary,) = np.moveaxis(target_maps(labels, ("mask", "boundary")), 2, 0)
    for nucleus in nuclei_of(labels):
        depth = depth_of(nucleus)
        assert (boundary[nucleus & (depth <= 1)] == 255).all()
        assert (boundary[nucleus & (depth > 3)] == 0).all()
    assert (boundary[labels == 0] == 0).all()


def test_distance_rises_to_one_in_every_nucleus(labels):
    (distance,) = np.moveaxis(target_maps(labels, ("mask", "distance")), 2, 0) / 255
    for nucleus in nuclei_of(labels):
        depth = depth_of(nucleus)
        np.testing.assert_allclose(distance[nucleus], depth[nucleus] / depth.max(), atol=0.13)
        assert distance[nucleus].max() == 1
    assert (distance[labels == 0] == 0).all()


def test_hover_is_the_place_within_the_nucleus(labels):
    across, down = np.moveaxis(target_maps(labels, ("mask", "hover")) / 255 * 2 - 1, 2, 0)
    for nucleus in nuclei_of(labels):
        rows, columns = np.nonzero(nucleus)
        for got, places in ((across, columns), (down, rows)):
            offset = places - places.mean()
            np.testing.assert_allclose(got[nucleus], offset / np.abs(offset).max(), atol=0.01)
    assert np.abs(across[labels == 0]).max() < 0.01


def test_touching_pixels_are_near_two_nuclei(labels):
    near = [binary_dilation(nucleus, np.ones((5, 5), bool)) for nucleus in nuclei_of(labels)]
    np.testing.assert_array_equal(touching_pixels(labels) > 0, np.sum(near, axis=0) >= 2)


def test_no_nuclei_no_targets():
    empty = np.zeros((9, 7), np.int32)
    maps = target_maps(empty, ("mask", "boundary", "distance", "hover"))
    assert maps.shape == (9, 7, 4)
    assert not maps[..., :2].any()
    assert (maps[..., 2:] == 128).all()
    assert not touching_pixels(empty).any()
    assert target_maps(empty, ("mask",)).shape == (9, 7, 0)
