"""Rates and shares of time."""

import re
import time

import numpy as np
import pytest

from cervseg_jax.segmentation.throughput import STAGES, Throughput, TimedSlide, timed


class Slide:
    shape = (8, 8, 3)
    is_closed = False

    def __getitem__(self, window):
        time.sleep(0.02)
        return np.zeros(self.shape, np.uint8)[window]

    def close(self):
        self.is_closed = True


def test_stages_are_added_up_over_calls_and_threads():
    throughput = Throughput()
    assert throughput.shares == dict.fromkeys(STAGES, 0.0)
    slide = Slide()
    image = TimedSlide(slide, throughput)
    assert image[0:4, 0:2].shape == (4, 2, 3)
    assert image.shape == (8, 8, 3)
    assert timed(throughput, "network", lambda images: images + 1)(np.zeros(2)).tolist() == [1, 1]
    with pytest.raises(ValueError, match="bad"), throughput.measure("writing"):
        time.sleep(0.02)
        raise ValueError("bad")
    image.close()
    assert slide.is_closed
    shares = throughput.shares
    assert shares["nuclei"] == 0
    assert min(shares["reading"], shares["network"], shares["writing"]) > 0
    assert sum(shares.values()) == pytest.approx(1)


def test_rates_are_those_of_finished_images():
    throughput = Throughput()
    throughput.add_image((1000, 500))
    throughput.add_image((500, 1000))
    time.sleep(0.01)
    throughput.stop()
    facts = throughput.to_json()
    assert (facts["num_images"], facts["megapixels"]) == (2, 1.0)
    assert facts["images_per_second"] == pytest.approx(2 / facts["seconds"])
    assert facts["megapixels_per_second"] == throughput.megapixels_per_second == pytest.approx(1 / facts["seconds"])
    pattern = (
        r"2 images, 1\.0 megapixels in \d+ s: [\d.]+ images/s, [\d.]+ megapixels/s; time: reading 0%, network 0%, "
    )
    assert re.match(pattern, throughput.describe())
