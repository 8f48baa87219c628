"""Tuning of post-processing, and its file."""

import cv2
import numpy as np

from cervseg_jax.data.pairs import Pair
from cervseg_jax.data.targets import target_maps
from cervseg_jax.schema import TiledConfig
from cervseg_jax.segmentation.postprocess import Postprocessing
from cervseg_jax.segmentation.predict import Predictor
from cervseg_jax.segmentation.segmenter import Segmenter
from cervseg_jax.segmentation.tuning import tune, tune_segmenter


def test_the_grid_finds_what_the_maps_need(rng):
    """A mask that is certain at 0.4 only: the default threshold would find nothing."""
    rows, columns = np.mgrid[:60, :90]
    truth = np.zeros((60, 90), np.int32)
    for number, (row, column) in enumerate([(20, 25), (20, 46), (42, 70)], start=1):
        truth[np.hypot(rows - row, columns - column) < 11] = number
    maps = np.dstack([0.4 * (truth > 0), target_maps(truth, ("mask", "distance"))[..., 0] / 255])
    postprocessing, quality = tune([maps], [truth], ("mask", "distance"))
    assert postprocessing.threshold == 0.35
    assert quality > 0.95


def test_a_threshold_that_is_set_is_not_searched():
    truth = np.zeros((30, 30), np.int32)
    truth[5:20, 5:20] = 1
    maps = np.float32(0.45 * (truth > 0))[..., None]
    postprocessing, quality = tune([maps], [truth], ("mask",), thresholds=(0.6,))
    assert (postprocessing.threshold, quality) == (0.6, 0)
    postprocessing, quality = tune([maps], [truth], ("mask",), thresholds=(0.6,), threshold_rule="otsu")
    assert (postprocessing.threshold_rule, quality) == ("otsu", 1)


def test_tuning_predicts_in_tiles_as_inference_does(tmp_path, rng):
    """A network that depends on the share of dark pixels in its input, which differs between image and tiles."""

    def predict(images):
        dark = (images[..., :1] < 128).astype(np.float32)
        share = dark.mean(axis=(1, 2, 3), keepdims=True)
        return np.where(dark > 0, 0.4 + 0.6 * share, 0.4 * (share > 0.15)).astype(np.float32)

    image = np.full((64, 96, 3), 255, np.uint8)
    image[10:40, 10:40] = 0
    labels = (image[..., 0] == 0).astype(np.uint8)
    for folder, values in (("images", image), ("masks", labels * 255), ("instances", labels)):
        (tmp_path / folder).mkdir()
        cv2.imwrite(str(tmp_path / folder / "a.png"), values)
    pair = Pair("a", "a", *(tmp_path / kind / "a.png" for kind in ("images", "masks", "instances")))
    predictor = Predictor(predict, (32, 32), 2, ("mask",))
    whole = tune_segmenter(Segmenter(predictor, Postprocessing()), [pair])
    tiled = tune_segmenter(Segmenter(predictor, Postprocessing(), TiledConfig(overlap_px=0)), [pair])
    assert (whole.postprocessing.threshold, tiled.postprocessing.threshold) == (0.35, 0.5)
