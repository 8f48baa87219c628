"""Labels of nuclei from maps whose answer is known."""

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt, gaussian_filter
from skimage.measure import label as connected_parts

from cervseg_jax.annotations.polygons import polygons_of
from cervseg_jax.data.targets import target_maps
from cervseg_jax.metrics.instance import aji, count_instances
from cervseg_jax.schema import PostprocessingConfig
from cervseg_jax.segmentation.instances import clean, connect_at_sides, label_instances, relabel

PARAMS = PostprocessingConfig(min_area_px=20)


def discs(shape, centers_and_radii):
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    labels = np.zeros(shape, np.int32)
    for number, (row, column, radius) in enumerate(centers_and_radii, start=1):
        labels[np.hypot(rows - row, columns - column) <= radius] = number
    return labels


PAIR = discs((60, 90), [(30, 30, 16), (30, 57, 14)])


def labelled(maps, heads, params=PARAMS):
    return label_instances(maps, maps[..., 0] >= 0.5, heads, params)


def maps_of(labels, *heads):
    """Perfect predictions."""
    layers = {"mask": labels > 0}
    own = np.zeros(labels.shape)
    for number in range(1, labels.max() + 1):
        distance = distance_transform_edt(labels == number)
        own += distance / max(distance.max(), 1)
    layers["distance"] = own
    layers["boundary"] = (labels > 0) & (
        sum(distance_transform_edt(labels == number) for number in range(1, labels.max() + 1)) <= 2
    )
    layers["hover"] = target_maps(labels, ("mask", "hover")) / 255
    return np.dstack([np.asarray(layers[head], np.float32) for head in ("mask", *heads)])


@pytest.mark.parametrize("heads", [(), ("boundary",), ("distance",), ("boundary", "distance"), ("hover",)])
def test_a_touching_pair_becomes_two(heads):
    labels = labelled(maps_of(PAIR, *heads), ("mask", *heads))
    assert labels.max() == 2
    assert aji(count_instances(PAIR, labels))[0] > 0.97


@pytest.mark.parametrize("heads", [(), ("boundary",), ("distance",), ("hover",)])
def test_a_single_nucleus_stays_whole(heads):
    rows, columns = np.mgrid[:60, :90]
    ellipse = (np.hypot((rows - 30) / 12, (columns - 45) / 30) <= 1).astype(np.int32)
    labels = labelled(maps_of(ellipse, *heads), ("mask", *heads))
    np.testing.assert_array_equal(labels, ellipse)


def test_every_nucleus_is_one_piece_with_one_outline(rng):
    """Only pixels that hang on a corner of the mask are left out, and components of the mask stay apart."""
    num_left_out = 0
    for _ in range(10):
        inside = gaussian_filter(rng.random((70, 70)), 1.5) > 0.51
        labels = labelled(np.float32(inside)[..., None], ("mask",), PostprocessingConfig(min_area_px=0, max_hole_px=0))
        components = connected_parts(inside, connectivity=2)
        num_left_out += (inside & (labels == 0)).sum()
        assert not (labels[~inside] > 0).any()
        for number in range(1, labels.max() + 1):
            assert len(np.unique(components[labels == number])) == 1
            assert connected_parts(labels == number, connectivity=1).max() == 1
        assert [len(polygons) for polygons in polygons_of(labels)] == [1] * labels.max()
    assert 0 < num_left_out < 0.02 * 10 * 70 * 70


def test_a_stray_piece_goes_to_the_neighbor_with_the_longest_border():
    labels = np.array(
        [
            [1, 1, 1, 0, 0, 0],
            [1, 1, 1, 2, 2, 2],
            [0, 0, 0, 1, 1, 2],
            [3, 3, 3, 3, 0, 2],
        ],
        np.int32,
    )
    expected = labels.copy()
    expected[2, 3:5] = 2  # a border of three sides with 2, of one with 3
    np.testing.assert_array_equal(connect_at_sides(labels), expected)
    alone = np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1]], np.int32)
    np.testing.assert_array_equal(connect_at_sides(alone), [[1, 1, 0], [1, 1, 0], [0, 0, 0]])
    connected = np.array([[1, 1, 0], [0, 1, 1], [2, 2, 2]], np.int32)
    np.testing.assert_array_equal(connect_at_sides(connected), connected)


def test_small_parts_go_and_small_holes_are_filled():
    mask = np.zeros((40, 40), bool)
    mask[5:25, 5:25] = True
    mask[10:13, 10:13] = False  # a hole of 9 pixels
    mask[16:22, 16:22] = False  # one of 36
    mask[30:32, 30:32] = True  # a part of 4
    mask[0:4, 30:36] = True
    mask[0:2, 31:33] = False  # open to the border: no hole
    cleaned = clean(mask, min_area_px=5, max_hole_px=10)
    assert cleaned[10:13, 10:13].all()
    assert not cleaned[16:22, 16:22].any()
    assert not cleaned[30:32, 30:32].any()
    assert not cleaned[0:2, 31:33].any()


def test_nothing_gives_an_empty_map():
    assert labelled(np.zeros((8, 9, 1), np.float32), ("mask",)).shape == (8, 9)
    assert labelled(np.zeros((8, 9, 1), np.float32), ("mask",)).max() == 0


def test_numbers_follow_the_reading_order():
    labels = np.array([[0, 9, 0, 4], [7, 9, 0, 4]])
    np.testing.assert_array_equal(relabel(labels), [[0, 1, 0, 2], [3, 1, 0, 2]])
