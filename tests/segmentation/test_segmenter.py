"""The segmenter as Python users call it, with a network that knows brightness alone."""

import csv
import json
import types

import cv2
import numpy as np
import pytest
from matplotlib.figure import Figure

from cervseg_jax.errors import ConfigError, DataError
from cervseg_jax.schema import TiledConfig
from cervseg_jax.segmentation.images import image_from_array
from cervseg_jax.segmentation.morphometry import COLUMNS
from cervseg_jax.segmentation.outputs import OUTPUTS
from cervseg_jax.segmentation.postprocess import Postprocessing
from cervseg_jax.segmentation.predict import Predictor
from cervseg_jax.segmentation.result import OutputStyle
from cervseg_jax.segmentation.segmenter import Segmenter


def darkness(images):
    return 1 - images[..., :1].astype(np.float32) / 255


SEGMENTER = Segmenter(Predictor(darkness, (48, 64), 2, ("mask",)), Postprocessing())


@pytest.fixture
def gray():
    """Two dark discs on bright ground, uint8 [48, 64]."""
    rows, columns = np.mgrid[:48, :64]
    inside = (np.hypot(rows - 20, columns - 16) < 9) | (np.hypot(rows - 28, columns - 46) < 8)
    return np.where(inside, np.uint8(40), np.uint8(230))


def test_an_image_gives_mask_labels_table_and_uncertainty(gray):
    result = SEGMENTER(gray)
    np.testing.assert_array_equal(result.mask, gray == 40)
    np.testing.assert_array_equal(result.labels > 0, gray == 40)
    assert result.probabilities.dtype == np.float32
    assert result.labels.dtype == np.int32
    assert 0 < result.uncertainty < 1
    assert list(result.table) == list(COLUMNS)
    np.testing.assert_array_equal(result.table["area_px"], np.bincount(result.labels.ravel())[1:])
    assert len(result.table["label"]) == 2


def test_gray_color_transparency_depth_and_files_give_the_same(gray, tmp_path):
    path = tmp_path / "cells.png"
    cv2.imwrite(str(path), gray)
    expected = SEGMENTER(gray).labels
    color = np.dstack([gray] * 3)
    opaque = np.dstack([color, np.full_like(gray, 255)])
    for image in (gray[..., None], color, opaque, color.astype(np.uint16) * 257, path, str(path)):
        np.testing.assert_array_equal(SEGMENTER(image).labels, expected)
    assert SEGMENTER(path).name == "cells"
    clear = np.dstack([np.zeros_like(color), np.zeros_like(gray)])  # laid on white
    assert not SEGMENTER(clear).mask.any()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((8, 8)), r"image_0: has float64 pixels; 8-bit or 16-bit is needed"),
        (np.zeros((8, 8), bool), "has bool pixels"),
        (np.zeros((3, 8, 8), np.uint8), r"has the shape \[3, 8, 8\]"),
        (np.zeros((2, 8, 8, 3), np.uint8), "pass several images as a list"),
        (np.zeros((0, 8, 3), np.uint8), "has no pixels"),
    ],
)
def test_other_arrays_are_refused(image, message):
    with pytest.raises(DataError, match=message):
        SEGMENTER(image)
    with pytest.raises(DataError, match="no such file"):
        SEGMENTER("nowhere.png")


def test_several_images_are_streamed(gray):
    taken = []

    def images():
        for index in range(9):
            taken.append(index)
            yield gray if index % 2 else 255 - gray

    results = SEGMENTER(images())
    assert isinstance(results, types.GeneratorType)
    first = next(results)
    assert len(taken) <= 6, "all images were read before the first result"
    names = [first.name, *(result.name for result in results)]
    assert names == [f"image_{index}" for index in range(9)]
    assert [int(result.labels.max()) for result in SEGMENTER([gray, gray])] == [2, 2]


def test_tiles_give_the_same_as_the_whole_for_a_network_without_context(gray):
    tiled = Segmenter(SEGMENTER.predictor, SEGMENTER.postprocessing, TiledConfig(overlap_px=8))
    large = np.tile(gray, (2, 2))
    np.testing.assert_array_equal(tiled(large).mask, large == 40)
    assert tiled(large).labels.max() == 8


def test_results_are_saved_as_the_command_does(gray, tmp_path):
    segmenter = Segmenter(SEGMENTER.predictor, SEGMENTER.postprocessing, style=OutputStyle(mpp=0.5))
    result = segmenter(gray)
    assert result.save(tmp_path / "all", "all") == tmp_path / "all"
    assert {path.name for path in (tmp_path / "all").iterdir()} == set(OUTPUTS)
    assert all(len(list(path.iterdir())) == 1 for path in (tmp_path / "all").iterdir())
    mask = cv2.imread(str(tmp_path / "all" / "masks" / "image_0.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(mask > 0, result.mask)
    with (tmp_path / "all" / "nuclei" / "image_0.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[0]["area_um2"]) == pytest.approx(result.table["area_um2"][0])
    assert json.loads((tmp_path / "all" / "coco" / "image_0.json").read_text())["images"][0]["file_name"]
    result.save(tmp_path / "some", ["masks"])
    assert [path.name for path in (tmp_path / "some").iterdir()] == ["masks"]
    with pytest.raises(ConfigError, match="outputs: unknown name 'mask'; did you mean 'masks'"):
        result.save(tmp_path / "some", "mask")


def test_a_result_is_plotted(gray):
    figure = Figure()
    ax = SEGMENTER(gray).plot(figure.subplots())
    assert ax.get_title() == "image_0: 2 nuclei"
    assert ax.images[0].get_array().shape == (48, 64, 3)


def test_labels_of_the_table_and_alone_are_the_same(gray):
    alone, first = SEGMENTER(gray), SEGMENTER(gray)
    table = first.table
    np.testing.assert_array_equal(alone.labels, first.labels)
    np.testing.assert_array_equal(table["label"], alone.table["label"])


def test_the_callers_array_is_not_changed(gray):
    color = np.dstack([gray] * 3)
    before = color.copy()
    SEGMENTER(color).overlay()
    np.testing.assert_array_equal(color, before)
    assert image_from_array(gray, name="a").flags.c_contiguous
