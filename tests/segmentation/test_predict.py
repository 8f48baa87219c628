"""Streaming images through a network."""

import threading

import numpy as np
import pytest

from cervseg_jax.data.resize import resize_image
from cervseg_jax.segmentation.predict import Predictor, predict_images


def brightness(images):
    return images[..., :1].astype(np.float32) / 255


def predictor(predict, batch_size=3):
    return Predictor(predict, (16, 24), batch_size, ("mask",))


@pytest.mark.parametrize("count", [0, 1, 3, 7])
def test_maps_come_in_order_and_in_the_images_own_size(count, rng):
    shapes = [(16, 24), (9, 31), (40, 20)]
    images = [rng.integers(0, 256, (*shapes[number % 3], 3), np.uint8) for number in range(count)]
    sizes = []

    def predict(batch):
        sizes.append(batch.shape)
        return brightness(batch)

    found = list(predict_images(predictor(predict), images))
    assert [maps.shape for maps in found] == [(*image.shape[:2], 1) for image in images]
    assert set(sizes) <= {(3, 16, 24, 3)}
    for image, maps in zip(images, found, strict=True):
        if image.shape[:2] == (16, 24):
            np.testing.assert_array_equal(maps, brightness(image))
        else:
            assert abs(maps.mean() - brightness(resize_image(image, (16, 24))).mean()) < 0.03


def test_the_next_images_are_read_while_a_batch_is_predicted():
    read = [threading.Event() for _ in range(4)]

    def images():
        for event in read:
            event.set()
            yield np.zeros((16, 24, 3), np.uint8)

    waited = []

    def predict(batch):
        waited.append(read[min(2 * len(waited) + 3, 3)].wait(10))  # the last image of the next batch
        return brightness(batch)

    assert len(list(predict_images(predictor(predict, batch_size=2), images()))) == 4
    assert waited == [True, True]


def test_what_goes_wrong_in_the_network_is_raised():
    def predict(batch):
        raise MemoryError("too much")

    with pytest.raises(MemoryError, match="too much"):
        list(predict_images(predictor(predict), [np.zeros((16, 24, 3), np.uint8)] * 4))
