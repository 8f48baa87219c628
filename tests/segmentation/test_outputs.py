"""What is written for each image."""

import cv2
import numpy as np

from cervseg_jax.files import write_png
from cervseg_jax.segmentation import result as results
from cervseg_jax.segmentation.outputs import write_results
from cervseg_jax.segmentation.result import Result


class Slide:
    """An image that is read window by window, and notes how large the windows are."""

    def __init__(self, pixels):
        self.pixels, self.shape, self.largest = pixels, pixels.shape, 0

    def __getitem__(self, window):
        found = self.pixels[window]
        self.largest = max(self.largest, len(found))
        return found


def test_overlays_of_large_images_are_thinned_and_read_band_by_band(tmp_path, rng, monkeypatch):
    pixels = rng.integers(0, 256, (203, 90, 3), np.uint8)
    mask = rng.random((203, 90)) < 0.3
    monkeypatch.setattr(results, "MAX_OVERLAY_PIXELS", 203 * 90 // 9)
    (tmp_path / "overlays").mkdir()
    for name, rows in (("whole", 1000), ("banded", 20)):
        monkeypatch.setattr(results, "BAND_ROWS", rows)
        slide = Slide(pixels)
        result = Result(slide, np.float32(mask)[..., None], name=name)
        write_png(tmp_path / "overlays" / f"{name}.png", result.overlay(with_labels=False))
    assert slide.largest <= 20
    whole, banded = (cv2.imread(str(tmp_path / "overlays" / f"{name}.png")) for name in ("whole", "banded"))
    assert np.array_equal(whole, banded)
    outside = ~mask[::3, ::3]
    assert np.array_equal(banded[outside], pixels[::3, ::3, ::-1][outside])


def test_probabilities_of_half_precision_reach_the_whole_range(tmp_path):
    maps = np.linspace(0, 1, 2500, dtype=np.float16).reshape(50, 50, 1)
    result = Result(np.zeros((50, 50, 3), np.uint8), maps, name="a")
    write_results(tmp_path, result, ("probabilities",))
    levels = cv2.imread(str(tmp_path / "probabilities" / "a.png"), cv2.IMREAD_UNCHANGED)
    assert levels.dtype == np.uint16
    assert (levels.min(), levels.max()) == (0, 65535)
    np.testing.assert_allclose(levels, maps[..., 0].astype(np.float64) * 65535, atol=0.51)
