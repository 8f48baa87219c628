"""Streaming images through a network."""

import threading

import numpy as np
import pytest

from cervseg_jax.data.resize import resize_image
from cervseg_jax.segmentation.predict import Predictor, predict_ahead, predict_images, with_padding


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
    assert all(len(size) == 4 and size[0] <= 3 and size[1:] == (16, 24, 3) for size in sizes)
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


def test_short_batches_are_filled_up():
    sizes = []

    def predict(images):
        sizes.append(len(images))
        return brightness(images)

    images = np.arange(5 * 16 * 24 * 3, dtype=np.uint8).reshape(5, 16, 24, 3)
    for count in (1, 4, 5):
        np.testing.assert_array_equal(with_padding(predict, 5)(images[:count]), brightness(images[:count]))
    assert sizes == [5, 5, 5]


@pytest.mark.parametrize("num_calls", [1, 3])
def test_batches_come_in_order_however_many_are_under_way(num_calls, rng):
    under_way, most, lock = 0, 0, threading.Lock()
    together = threading.Barrier(num_calls)

    def predict(images):
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        together.wait(10)  # returns when so many calls are under way
        with lock:
            under_way -= 1
        return brightness(images)

    batches = [(number, rng.integers(0, 256, (2, 16, 24, 3), np.uint8)) for number in range(6)]
    found = list(predict_ahead(predictor(predict)._replace(num_calls=num_calls), batches))
    assert [number for number, _ in found] == list(range(6))
    assert all(np.array_equal(maps, brightness(images)) for (_, maps), (_, images) in zip(found, batches, strict=True))
    assert most == num_calls
