"""Measurements against scikit-image and closed forms."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, label
from skimage.color import rgb2hed
from skimage.feature import graycomatrix, graycoprops
from skimage.measure import perimeter_crofton, regionprops

from cervseg_jax.segmentation.morphometry import GRAY_LEVELS, in_micrometers, measure


@pytest.fixture
def scene(rng):
    labels, _ = label(gaussian_filter(rng.random((160, 200)), 4) > 0.505)
    labels[labels > 0] *= 3
    image = rng.integers(0, 256, (160, 200, 3), np.uint8)
    return labels, image


def test_shapes_equal_those_of_scikit_image(scene):
    labels, image = scene
    table = measure(labels, image)
    props = regionprops(labels)
    assert len(props) > 10
    for name, theirs in (
        ("label", "label"),
        ("area_px", "area"),
        ("equivalent_diameter_px", "equivalent_diameter_area"),
        ("major_axis_px", "axis_major_length"),
        ("minor_axis_px", "axis_minor_length"),
        ("eccentricity", "eccentricity"),
    ):
        np.testing.assert_allclose(table[name], [prop[theirs] for prop in props], rtol=1e-6, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(np.stack([table["row"], table["column"]], 1), [prop.centroid for prop in props])
    box = np.stack([table[name] for name in ("top", "left", "height", "width")], 1)
    want = [(b[0], b[1], b[2] - b[0], b[3] - b[1]) for b in (prop.bbox for prop in props)]
    np.testing.assert_array_equal(box, want)
    want = [perimeter_crofton(np.pad(prop.image, 1), directions=4) for prop in props]
    np.testing.assert_allclose(table["perimeter_px"], want, rtol=1e-9)
    angles = np.radians(table["orientation_degrees"] - np.degrees([prop.orientation for prop in props]))
    long = table["eccentricity"] > 0.5
    np.testing.assert_allclose(np.sin(angles[long]), 0, atol=1e-6)
    # Scikit-image counts the pixels of the hull, which are a little fewer than its area.
    large = table["area_px"] > 200
    np.testing.assert_allclose(
        table["solidity"][large], [prop.solidity for prop, keep in zip(props, large, strict=True) if keep], atol=0.05
    )


def test_intensities_and_dyes(scene):
    labels, image = scene
    table = measure(labels, image)
    haematoxylin = rgb2hed(np.maximum(image, 1))[..., 0]
    means = np.array([haematoxylin[labels == number].mean() for number in table["label"]])
    # Scikit-image takes logarithms to the base 10^-6 and clips below zero.
    assert np.corrcoef(means, table["haematoxylin_mean"])[0, 1] > 0.9
    flat = np.full((20, 20, 3), 51, np.uint8)
    disc = np.zeros((20, 20), int)
    disc[5:15, 5:15] = 1
    one = measure(disc, flat)
    assert one["optical_density_mean"][0] == pytest.approx(np.log10(5))
    assert one["intensity_sd"][0] == pytest.approx(0, abs=1e-6)
    assert one["texture_entropy_bits"][0] == 0
    assert one["texture_homogeneity"][0] == 1


def test_texture_equals_the_matrix_of_scikit_image(rng):
    image = np.repeat(rng.integers(0, 256, (30, 40, 1), np.uint8), 3, axis=2)
    table = measure(np.ones((30, 40), int), image)
    levels = (image[..., 0].astype(int) * GRAY_LEVELS // 256).astype(np.uint8)
    angles = [0, np.pi / 4, np.pi / 2, 3 * np.pi / 4]
    matrix = graycomatrix(levels, [1], angles, levels=GRAY_LEVELS, symmetric=True).sum(axis=3, keepdims=True)
    matrix = matrix / matrix.sum()
    for name in ("contrast", "homogeneity"):
        assert table[f"texture_{name}"][0] == pytest.approx(graycoprops(matrix, name)[0, 0])


def test_a_disc_is_round():
    rows, columns = np.mgrid[:120, :120]
    disc = (np.hypot(rows - 60, columns - 60) <= 40).astype(int)
    table = measure(disc, np.zeros((120, 120, 3), np.uint8), probs=disc * 0.75)
    assert table["perimeter_px"][0] == pytest.approx(2 * np.pi * 40, rel=0.02)
    assert table["circularity"][0] == pytest.approx(1, abs=0.04)
    assert table["solidity"][0] == pytest.approx(1, abs=0.03)
    assert table["major_axis_px"][0] == pytest.approx(80, rel=0.02)
    assert table["confidence"][0] == 0.75
    assert np.isnan(table["nearest_px"][0])


def test_neighbors_and_borders():
    labels = np.zeros((30, 40), int)
    labels[0:10, 5:15], labels[10:20, 5:15], labels[9:15, 15:20] = 4, 2, 9  # 9 touches both
    labels[25:28, 30:33] = 5
    table = measure(labels, np.zeros((30, 40, 3), np.uint8))
    np.testing.assert_array_equal(table["label"], [2, 4, 5, 9])
    np.testing.assert_array_equal(table["num_touching"], [2, 2, 0, 2])
    np.testing.assert_array_equal(table["touches_border"], [0, 1, 0, 0])
    assert table["nearest_px"][1] == pytest.approx(10)


def test_micrometers_stand_beside_pixels():
    labels = np.zeros((30, 40), int)
    labels[5:15, 5:15] = 1
    table = in_micrometers(measure(labels, np.zeros((30, 40, 3), np.uint8)), 0.25)
    assert table["area_um2"][0] == pytest.approx(100 / 16)
    assert table["perimeter_um"][0] == pytest.approx(table["perimeter_px"][0] / 4)
    names = list(table)
    assert names.index("area_um2") == names.index("area_px") + 1


def test_no_nuclei_give_empty_columns():
    table = measure(np.zeros((9, 9), int), np.zeros((9, 9, 3), np.uint8), probs=np.zeros((9, 9)))
    assert "confidence" in table
    assert all(len(values) == 0 for values in table.values())
