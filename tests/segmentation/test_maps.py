"""Probability maps of several images at once."""

import threading

import numpy as np
import pytest

from cervseg_jax.errors import DataError
from cervseg_jax.schema import TiledConfig
from cervseg_jax.segmentation.images import ImageLike
from cervseg_jax.segmentation.maps import predict_maps
from cervseg_jax.segmentation.predict import Predictor

SETTINGS = TiledConfig(overlap_px=8, blend_whole=False)


class OnDisk:
    """An image of which only windows are read."""

    def __init__(self, image):
        self.image = image
        self.shape = image.shape

    def __getitem__(self, window):
        return self.image[window]


class Damaged(OnDisk):
    """A slide that cannot be read."""

    def __getitem__(self, window):
        raise DataError("damaged")


def predict(tiles):
    values = np.sin(tiles.astype(np.float32)).cumsum(axis=1, dtype=np.float32)[..., :1]
    return values - values.min()


def predicted(images, num_calls, **options):
    predictor = Predictor(predict, (32, 48), 3, ("mask",), num_calls)
    return list(predict_maps(predictor, SETTINGS, enumerate(images), **options))


@pytest.fixture
def images(rng):
    arrays = [rng.integers(0, 256, (int(rng.integers(20, 120)), 90, 3), np.uint8) for _ in range(9)]
    return [OnDisk(array) if index in (3, 8) else array for index, array in enumerate(arrays)]


def test_several_images_at_once_have_the_maps_of_one_by_one(images):
    expected, found = predicted(images, 1), predicted(images, 4)
    assert [tag for tag, _ in found] == list(range(9))
    for (_, one), (_, other) in zip(expected, found, strict=True):
        assert one.image is other.image
        np.testing.assert_array_equal(one.prediction.maps, other.prediction.maps)


def test_images_are_predicted_together_and_slides_alone(images):
    under_way: set[int] = set()
    seen: list[set[int]] = []
    lock, four = threading.Lock(), threading.Barrier(4)

    def bands_of(tag):
        with lock:
            under_way.add(tag)
            seen.append(set(under_way))
        if tag in (4, 5, 6, 7):
            four.wait(10)  # returns when four images are under way
        with lock:
            under_way.discard(tag)

    predicted(images, 4, bands_of=bands_of)
    assert {3} in seen and {8} in seen
    assert all(len(tags) == 1 for tags in seen if tags & {3, 8})


@pytest.mark.parametrize("num_calls", [1, 4])
def test_a_damaged_image_fails_alone(images, num_calls):
    images[5] = Damaged(np.zeros((40, 40, 3), np.uint8))
    assert isinstance(images[5], ImageLike)
    failed = []
    found = predicted(images, num_calls, on_failure=lambda tag, error: failed.append((tag, str(error))))
    assert failed == [(5, "damaged")]
    assert [tag for tag, _ in found] == [0, 1, 2, 3, 4, 6, 7, 8]
    with pytest.raises(DataError, match="damaged"):
        predicted(images, num_calls)
