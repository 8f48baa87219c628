"""Prediction at the scale of the network, with a stand-in for one that knows nuclei of one size."""

from functools import partial

import cv2
import numpy as np
import pytest

from cervseg_jax.schema import PostprocessingConfig, Scale
from cervseg_jax.segmentation.maps import scaled_predictor
from cervseg_jax.segmentation.postprocess import Postprocessing
from cervseg_jax.segmentation.predict import Predictor
from cervseg_jax.segmentation.scale import estimate_nucleus_px, flat_areas, without_flat_areas
from cervseg_jax.segmentation.segmenter import Segmenter

NETWORK_PX = 16.0
SCALE = Scale(nucleus_px=NETWORK_PX, mpp=0.5)


def one_size(images):
    """Finds dark blobs, surely if they are about `NETWORK_PX` across."""
    maps = []
    for image in images:
        dark = np.uint8(image[..., 0] < 140)
        count, labels, stats, _ = cv2.connectedComponentsWithStats(dark)
        sizes = np.sqrt(4 * np.maximum(stats[:, cv2.CC_STAT_AREA], 1) / np.pi)
        sure = 0.5 + 0.5 * np.exp(-0.5 * (np.log(sizes / NETWORK_PX) / 0.4) ** 2)
        sure[0] = 0.0
        maps.append(sure[labels])
    return np.float32(maps)[..., None]


PREDICTOR = Predictor(one_size, (96, 96), 2, ("mask",))
SEGMENTER = Segmenter(PREDICTOR, Postprocessing(), scale=SCALE)


def cells(diameter, side=256):
    """Dark discs on bright ground, uint8 [side, side, 3]."""
    step = round(2.5 * diameter)
    side -= side % step
    rows, columns = np.mgrid[:side, :side]
    inside = np.hypot(rows % step - step / 2, columns % step - step / 2) < diameter / 2
    return np.where(inside[..., None], np.uint8(40), np.uint8(230)).repeat(3, axis=2)


@pytest.mark.parametrize("diameter", [8, 16, 40, 90])
def test_the_diameter_is_estimated(diameter):
    image = cells(diameter, side=400)
    assert estimate_nucleus_px(PREDICTOR, image, SCALE) == pytest.approx(diameter, rel=0.15)


def granules_too(images, *, certainty=1.0):
    """Finds blobs of about `NETWORK_PX` among the darker areas, and with some certainty among the dark ones."""
    maps = []
    for image in images:
        found = np.zeros(image.shape[:2])
        for level, factor in ((140, certainty), (60, 1.0)):
            labels, stats = cv2.connectedComponentsWithStats(np.uint8(image[..., 0] < level))[1:3]
            sizes = np.sqrt(4 * np.maximum(stats[:, cv2.CC_STAT_AREA], 1) / np.pi)
            sure = factor * np.exp(-0.5 * (np.log(sizes / NETWORK_PX) / 0.4) ** 2)
            sure[0] = 0.0
            found = np.maximum(found, sure[labels])
        maps.append(found)
    return np.float32(maps)[..., None]


@pytest.mark.parametrize("has_nuclei, expected", [(True, 56), (False, 10)])
def test_granules_of_nuclei_do_not_vote_against_the_nuclei(has_nuclei, expected):
    image = np.full((280, 280, 3), 230, np.uint8)
    for center in ((row, column) for row in (70, 210) for column in (70, 210)):
        if has_nuclei:
            cv2.circle(image, center, 28, (100, 100, 100), -1)
        for angle in np.arange(6) * np.pi / 3:
            place = np.round(np.array(center) + 17 * np.array([np.cos(angle), np.sin(angle)])).astype(int)
            cv2.circle(image, place.tolist(), 5, (30, 30, 30), -1)
    predictor = Predictor(granules_too, (96, 96), 2, ("mask",))
    assert estimate_nucleus_px(predictor, image, SCALE) == pytest.approx(expected, rel=0.15)


def test_nuclei_vote_against_the_cells_that_they_lie_in():
    image = np.full((200, 200, 3), 230, np.uint8)
    for center in ((50, 50), (50, 150), (150, 50), (150, 150)):
        cv2.circle(image, center, 36, (100, 100, 100), -1)
        cv2.circle(image, center, 8, (30, 30, 30), -1)
    for center in ((100, 20), (100, 100), (100, 180), (20, 100), (180, 100)):
        cv2.circle(image, center, 8, (30, 30, 30), -1)
    predictor = Predictor(partial(granules_too, certainty=0.7), (96, 96), 2, ("mask",))
    assert estimate_nucleus_px(predictor, image, SCALE) == pytest.approx(17, rel=0.15)


def test_a_nucleus_counts_more_than_specks():
    image = np.full((120, 120, 3), 230, np.uint8)
    cv2.circle(image, (60, 60), 24, (100, 100, 100), -1)
    for angle in np.arange(12) * np.pi / 6:
        place = np.round(60 + 40 * np.array([np.cos(angle), np.sin(angle)])).astype(int)
        cv2.circle(image, place.tolist(), 4, (100, 100, 100), -1)
    assert estimate_nucleus_px(PREDICTOR, image, SCALE) == pytest.approx(49, rel=0.15)


@pytest.mark.parametrize("image", [np.full((64, 80, 3), 255, np.uint8), np.full((3, 5, 3), 90, np.uint8)])
def test_an_image_without_nuclei_keeps_the_size_of_the_network(image):
    result = SEGMENTER(image)
    assert result.scale is not None
    assert result.scale.source in ("default", "estimated")
    assert result.labels.shape == image.shape[:2]


@pytest.mark.parametrize("diameter", [8, 16, 48])
def test_results_are_in_the_images_own_pixels(diameter):
    image = cells(diameter)
    result = SEGMENTER(image)
    truth = image[..., 0] == 40
    assert result.scale.source == "estimated"
    dice = 2 * (result.mask & truth).sum() / (result.mask.sum() + truth.sum())
    assert dice > 0.9
    count = cv2.connectedComponents(truth.astype(np.uint8))[0] - 1
    assert result.labels.max() == pytest.approx(count, abs=0.1 * count + 1)


def test_a_given_size_and_the_pixel_size_come_before_an_estimate():
    image = cells(16)
    given = Segmenter(PREDICTOR, Postprocessing(), scale=SCALE, nucleus_px=32.0)
    assert given.scale_of(image) == (32.0, "given", 0.5)
    assert given.scale_of(image, mpp=0.25).source == "given"
    assert SEGMENTER.scale_of(image, mpp=0.25) == (32.0, "pixel size", 0.5)
    unknown = Segmenter(PREDICTOR, Postprocessing(), scale=Scale(nucleus_px=NETWORK_PX))
    assert unknown.scale_of(image, mpp=0.25).source == "estimated"


def test_tiles_are_resized_to_the_network_and_back():
    scaled = scaled_predictor(PREDICTOR, 0.5)
    assert scaled.image_size == (192, 192)
    maps = scaled.predict(np.stack([cells(32, side=192)] * 2))
    assert maps.shape == (2, 192, 192, 1)


def test_lengths_and_areas_are_those_at_the_networks_input():
    params = PostprocessingConfig(min_area_px=36, max_hole_px=400, smoothing_px=1.0)
    scaled = Postprocessing(0.4, params=params).at_scale(2.0)
    assert (scaled.threshold, scaled.params.min_area_px, scaled.params.max_hole_px) == (0.4, 9, 100)
    assert scaled.params.smoothing_px == 0.5


def test_areas_of_one_color_that_are_larger_than_a_nucleus_are_no_nuclei(rng):
    image = np.uint8(rng.integers(60, 200, (80, 90, 3)))
    image[:30, :40] = 3
    image[60:66, 60:66] = 0  # a dark nucleus
    image[40:75, 10:45] = 0  # one that is larger than assumed
    expected = np.zeros((80, 90), bool)
    expected[:30, :40] = True
    np.testing.assert_array_equal(flat_areas(image, 16.0), expected)
    maps = without_flat_areas(lambda images: np.ones((*images.shape[:3], 2), np.float32), 16.0)(image[None])
    np.testing.assert_array_equal(maps[0, ..., 0] == 0, expected)
    assert (maps[..., 1] == 1).all()


def test_a_slide_is_sampled_and_not_read_whole():
    class Slide:
        shape = (9000, 8000, 3)
        pixels_read = 0

        def __getitem__(self, window):
            rows, columns = (range(*part.indices(length)) for part, length in zip(window, self.shape, strict=False))
            self.pixels_read += len(rows) * len(columns)
            row, column = np.ogrid[rows.start : rows.stop, columns.start : columns.stop]
            inside = np.hypot(row % 60 - 30, column % 60 - 30) < 12
            return np.where(inside[..., None], np.uint8(40), np.uint8(230)).repeat(3, axis=2)

    slide = Slide()
    assert estimate_nucleus_px(PREDICTOR, slide, SCALE) == pytest.approx(24, rel=0.15)
    assert slide.pixels_read < 0.1 * 9000 * 8000
