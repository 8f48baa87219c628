import json

import numpy as np
import pytest
from matplotlib.path import Path as Polygon

from cervseg_jax.annotations.labelme import LabeledOutline, labelme_document
from cervseg_jax.annotations.outlines import draw_instances, rasterize


def whole(points, shape):
    top, left, inside = rasterize([points], shape=shape)
    mask = np.zeros(shape, bool)
    mask[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
    return mask


def circle(radius, center=(30.3, 28.6), corners=200):
    angle = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    return np.stack([center[0] + radius * np.cos(angle), center[1] + radius * np.sin(angle)], axis=1)


@pytest.mark.parametrize("seed", range(20))
def test_equals_matplotlibs_point_in_polygon(seed):
    rng = np.random.default_rng(seed)
    points = rng.uniform(-8, 48, (int(rng.integers(3, 12)), 2))  # crossing itself, and partly outside
    rows, columns = np.mgrid[:40, :44]
    centers = np.stack([columns.ravel() + 0.5, rows.ravel() + 0.5], axis=1)
    crossings = Polygon(np.vstack([points, points[:1]])).contains_points(centers).reshape(40, 44)
    got = whole(points, (40, 44))
    if not _self_crossing(points):
        np.testing.assert_array_equal(got, crossings)
    np.testing.assert_array_equal(got, _even_odd(points, centers).reshape(40, 44))


def _even_odd(points, centers):
    """The crossing-number test, one point at a time."""
    inside = np.zeros(len(centers), bool)
    for index, (px, py) in enumerate(centers):
        for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
            if (y0 <= py) != (y1 <= py) and px >= x0 + (py - y0) / (y1 - y0) * (x1 - x0):
                inside[index] ^= True
    return inside


def _self_crossing(points):
    def side(a, b, c):
        return np.sign((b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0]))

    n = len(points)
    edges = [(points[i], points[(i + 1) % n]) for i in range(n)]
    return any(
        side(a, b, c) != side(a, b, d) and side(c, d, a) != side(c, d, b)
        for i, (a, b) in enumerate(edges)
        for j, (c, d) in enumerate(edges)
        if abs(i - j) not in (0, 1, n - 1)
    )


@pytest.mark.parametrize("radius", [6, 10, 15, 20])
def test_area_of_a_circle_is_right_within_one_percent(radius):
    rng = np.random.default_rng(radius)
    areas = [whole(circle(radius, 30 + rng.uniform(0, 1, 2)), (64, 64)).sum() for _ in range(20)]
    assert np.mean(areas) == pytest.approx(np.pi * radius**2, rel=0.01)


def test_polygons_outside_the_image_and_degenerate_ones_are_empty():
    for points in (circle(5, (-30, -30)), circle(5, (200, 10)), np.array([[3.0, 3.0], [9.0, 9.0]])):
        assert whole(points, (64, 64)).sum() == 0


def test_neighbors_share_no_pixel_and_leave_no_gap():
    left, right = (
        np.array([[5, 5], [20.5, 5], [20.5, 30], [5, 30.0]]),
        np.array([[20.5, 5], [40, 5], [40, 30], [20.5, 30.0]]),
    )
    a, b = whole(left, (64, 64)), whole(right, (64, 64))
    assert not (a & b).any()
    np.testing.assert_array_equal(a | b, whole(np.array([[5, 5], [40, 5], [40, 30], [5, 30.0]]), (64, 64)))


def test_later_polygons_lie_on_top():
    labels = draw_instances([[circle(12)], [circle(6)]], shape=(64, 64))
    assert labels[28, 30] == 2
    assert (labels == 1).sum() > 200


def test_document_is_what_labelme_writes():
    document = json.loads(labelme_document([LabeledOutline([circle(5)])], image_path="../images/a.png", shape=(64, 48)))
    assert (document["imageHeight"], document["imageWidth"]) == (64, 48)
    assert document["imagePath"] == "../images/a.png"
    assert document["imageData"] is None
    shape = document["shapes"][0]
    assert (shape["label"], shape["shape_type"], len(shape["points"])) == ("nucleus", "polygon", 200)
