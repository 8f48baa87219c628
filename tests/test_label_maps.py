"""Contacts and distances of nuclei, against loops over pixels and SciPy."""

import cv2
import numpy as np
import pytest
from scipy.ndimage import binary_erosion, distance_transform_edt
from skimage.segmentation import find_boundaries

from cervseg_jax import label_maps


def test_touching_at_a_corner_counts():
    labels = np.zeros((6, 6), int)
    labels[:2, 3:5], labels[2:4, 1:3], labels[5, 5] = 1, 2, 3
    np.testing.assert_array_equal(label_maps.touching(labels), [True, True, False])
    np.testing.assert_array_equal(label_maps.touching(labels.T), [True, True, False])
    assert not label_maps.touching(np.zeros((4, 4), int)).any()


def test_touching_equals_a_loop_over_pixels(rng):
    for _ in range(20):
        labels = rng.integers(0, 9, (9, 11)) * (rng.random((9, 11)) < 0.25)
        want = set()
        for y, x in np.argwhere(labels > 0):
            around = labels[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
            if ((around > 0) & (around != labels[y, x])).any():
                want.add(int(labels[y, x]))
        assert label_maps.touching(labels).tolist() == [label in want for label in np.unique(labels[labels > 0])]


def test_surface_distances_equal_a_plain_computation(rng):
    for _ in range(30):
        truth = np.zeros((50, 60), int)
        rows, columns = np.mgrid[:50, :60]
        radii = rng.uniform(8, 14, 2)
        truth[np.hypot((rows - 24) / radii[0], (columns - 30) / radii[1]) <= 1] = 4
        prediction = np.roll(truth, tuple(rng.integers(-3, 4, 2)), (0, 1)) * 2
        distances = label_maps.surface_distances(truth, prediction)
        edges = [
            m & ~binary_erosion(m, np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], bool))
            for m in (truth > 0, prediction > 0)
        ]
        there = distance_transform_edt(~edges[1])[edges[0]]
        back = distance_transform_edt(~edges[0])[edges[1]]
        want = max(np.percentile(there, 95), np.percentile(back, 95))
        np.testing.assert_allclose(distances.hd95, [want], atol=1e-4)
        np.testing.assert_allclose(distances.assd, [np.concatenate([there, back]).mean()], atol=1e-4)


@pytest.mark.parametrize("threads", [1, 2])
def test_distances_are_exact_wherever_an_array_lies(rng, threads):
    """OpenCV's own differ in their last bits between two runs, and with them one pixel of a nucleus in 200 images."""
    threads_before = cv2.getNumThreads()
    cv2.setNumThreads(threads)
    for side in (96, 150):
        rows, columns = np.mgrid[:side, :side]
        discs = [np.hypot(rows - row, columns - column) < 17 for row, column in rng.uniform(0, side, (9, 2))]
        mask = np.any(discs, axis=0)
        exact = distance_transform_edt(mask).astype(np.float32)
        for offset in range(64):
            memory = np.zeros(mask.size + 64, bool)
            own = memory[offset : offset + mask.size].reshape(mask.shape)
            own[...] = mask
            np.testing.assert_array_equal(label_maps.distance_to_border(own), exact)
    cv2.setNumThreads(threads_before)


def test_inner_borders_equal_those_of_another_implementation(rng):
    for _ in range(10):
        labels = rng.integers(0, 4, (5, 6)).repeat(4, axis=0).repeat(4, axis=1)
        expected = find_boundaries(labels, connectivity=2, mode="inner")
        np.testing.assert_array_equal(label_maps.inner_borders(labels), expected)
    assert not label_maps.inner_borders(np.ones((4, 5), bool)).any()  # the image's edge is none


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint8, np.uint16])
@pytest.mark.parametrize("most", [1, 9, 255])
@pytest.mark.parametrize("shape", [(0,), (1,), (7, 0), (12, 13), (40, 50)])
def test_distinct_values_are_those_of_numpy(rng, dtype, most, shape):
    values = rng.integers(0, most + 1, shape).astype(dtype)
    for case in (values, values[..., ::-1], values.astype(np.int64) - 1):
        expected, inverse = np.unique(case, return_inverse=True)
        found, positions = label_maps.distinct(case)
        assert found.dtype == case.dtype and positions.shape == case.shape
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(positions, inverse.reshape(case.shape))
