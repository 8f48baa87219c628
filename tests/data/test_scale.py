"""Scaling of images by the nuclei in their annotations."""

import cv2
import numpy as np
import pytest

from cervseg_jax.data.geometric import random_window
from cervseg_jax.data.pairs import Pair
from cervseg_jax.data.samples import Sample, load_sample
from cervseg_jax.data.scale import diameters, measure_diameters, scale_pairs, window_pairs
from cervseg_jax.schema import DataConfig


def discs(size, radius, step):
    rows, columns = np.mgrid[:size, :size]
    return np.hypot(rows % step - step // 2, columns % step - step // 2) < radius


def write_pair(folder, stem, mask):
    for name, pixels in (("images", np.where(mask, 60, 220)), ("masks", mask * 255)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / name / f"{stem}.png"), np.uint8(pixels))
    return Pair(stem, stem, folder / "images" / f"{stem}.png", folder / "masks" / f"{stem}.png")


def test_diameters_are_those_of_circles_and_noise_is_left_out():
    labels = np.zeros((60, 60), np.int32)
    labels[:40, :40][discs(40, 10, 40)] = 5
    labels[50:52, 50:52] = 6
    assert diameters(labels) == pytest.approx([20], abs=0.3)


def test_touching_nuclei_of_a_mask_count_one_by_one(tmp_path):
    rows, columns = np.mgrid[:80, :160]
    mask = np.min([np.hypot(rows - 40, columns - center) for center in (30, 66, 102)], axis=0) < 20
    pair = write_pair(tmp_path, "row", mask)
    assert measure_diameters(pair, DataConfig(root=tmp_path)) == pytest.approx([40, 40, 40], rel=0.1)


def test_images_are_scaled_by_their_own_nuclei_and_empty_ones_as_the_others(tmp_path):
    small, large = discs(128, 5, 32), discs(256, 20, 64)
    pairs = [
        write_pair(tmp_path, "small", small),
        write_pair(tmp_path, "large", large),
        write_pair(tmp_path, "empty", np.zeros((64, 64), bool)),
    ]
    data = DataConfig(root=tmp_path)
    scaled, sizes = scale_pairs(pairs, data, nucleus_px=20.0)
    assert sizes[:2] == pytest.approx([10, 40], rel=0.08)
    assert [pair.scale for pair in scaled[:2]] == pytest.approx([2.0, 0.5], rel=0.08)
    assert sizes[2] == np.median([*measure_diameters(pairs[0], data), *measure_diameters(pairs[1], data)])
    for pair, side in zip(scaled[:2], (256, 128), strict=True):
        sample = load_sample(pair, image_size=(64, 64), mask_rule="half_range")
        assert sample.image.shape[0] == sample.mask.shape[0] == pytest.approx(side, rel=0.08)
        found = diameters(np.asarray(cv2.connectedComponents(sample.mask)[1], np.int32))
        assert np.median(found) == pytest.approx(20, rel=0.08)


def test_windows_cover_the_scaled_image_and_fit_the_network(tmp_path):
    mask = discs(96, 6, 24)[:, :80]
    pair = write_pair(tmp_path, "a", mask)._replace(scale=1.0)
    windows = window_pairs([pair], [mask.shape], (64, 64))
    assert [window.window for window in windows] == [(0, 0), (0, 16), (32, 0), (32, 16)]
    covered = np.zeros(mask.shape, int)
    for window in windows:
        top, left = window.window
        sample = load_sample(window, image_size=(64, 64), mask_rule="half_range")
        np.testing.assert_array_equal(sample.mask, mask[top : top + 64, left : left + 64])
        covered[top : top + 64, left : left + 64] += 1
    assert covered.min() == 1


def test_a_small_image_is_padded_with_the_color_of_its_border(tmp_path):
    mask = discs(40, 6, 40)
    (window,) = window_pairs([write_pair(tmp_path, "a", mask)._replace(scale=1.0)], [mask.shape], (64, 48))
    sample = load_sample(window, image_size=(64, 48), mask_rule="half_range")
    assert sample.image.shape == (64, 48, 3)
    assert (sample.image[40:] == 220).all() and (sample.image[:, 40:] == 220).all()
    assert sample.mask.sum() == mask.sum()


@pytest.mark.parametrize("shape", [(200, 150), (40, 300)])
def test_random_windows_keep_image_and_labels_registered(shape):
    mask = np.uint8(discs(300, 8, 40)[: shape[0], : shape[1]])
    image = np.where(mask[..., None] > 0, np.uint8(60), np.uint8(220)).repeat(3, axis=2)
    sample = Sample(image, mask, mask.astype(np.int32) * 9)
    settings = {"size": (64, 96), "scale": (0.5, 2.0), "max_degrees": 180.0, "nucleus_share": 1.0}
    num_with_nuclei, areas = 0, []
    for seed in range(30):
        got = random_window(sample, np.random.default_rng(seed), **settings)
        assert got.image.shape == (64, 96, 3) and got.mask.shape == got.instances.shape == (64, 96)
        np.testing.assert_array_equal(got.instances, got.mask.astype(np.int32) * 9)
        dark = got.image[..., 0] < 140
        assert (dark != (got.mask > 0)).mean() < 0.03
        num_with_nuclei += bool(got.mask.any())
        areas.append(diameters(np.asarray(cv2.connectedComponents(got.mask)[1], np.int32)).max(initial=0))
    assert num_with_nuclei == 30
    assert max(areas) > 22 and min(area for area in areas if area) < 14


def test_a_window_without_change_is_a_part_of_the_image(rng):
    image = rng.integers(0, 255, (80, 90, 3), np.uint8)
    sample = Sample(image, np.zeros((80, 90), np.uint8))
    settings = {"size": (80, 90), "scale": (1.0, 1.0), "max_degrees": 0.0, "nucleus_share": 0.0}
    np.testing.assert_array_equal(random_window(sample, rng, **settings).image, image)
