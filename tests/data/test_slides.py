"""A slide on disk is read window by window and gives what the image in memory gives."""

import cv2
import numpy as np
import pytest

from cervseg_jax.data.slides import Slide, is_slide
from cervseg_jax.errors import DataError
from cervseg_jax.segmentation.tiling import predict_tiled

tifffile = pytest.importorskip("tifffile", reason="the extra `slides` is not installed")


@pytest.fixture
def slide_and_image(tmp_path, rng):
    image = rng.integers(0, 256, (300, 420, 3), np.uint8)
    path = tmp_path / "region.tif"
    tifffile.imwrite(path, image, tile=(64, 64), photometric="rgb", resolution=(20000, 20000), resolutionunit=3)
    slide = Slide(path)
    yield slide, image
    slide.close()


def test_windows_equal_the_image(slide_and_image):
    slide, image = slide_and_image
    assert slide.shape == image.shape
    np.testing.assert_array_equal(slide[10:200, 63:130], image[10:200, 63:130])
    np.testing.assert_array_equal(slide[:, 400:], image[:, 400:])


def test_tiles_of_a_slide_equal_those_of_the_image(slide_and_image):
    slide, image = slide_and_image
    one, other = (
        np.concatenate(
            [
                rows
                for _, rows in predict_tiled(
                    lambda tiles: (tiles[..., :1] / 255).astype(np.float32),
                    source,
                    tile_size=(64, 96),
                    overlap_px=16,
                    batch_size=4,
                )
            ]
        )
        for source in (slide, image)
    )
    np.testing.assert_array_equal(one, other)


def test_what_is_no_slide_is_named(tmp_path):
    (tmp_path / "a.svs").write_bytes(b"nonsense")
    with pytest.raises(DataError, match=r"a\.svs: is no slide that can be read"):
        Slide(tmp_path / "a.svs")


def test_tiff_files_are_slides_where_they_cannot_be_decoded_whole(tmp_path, rng):
    image = rng.integers(0, 256, (300, 420, 3), np.uint8)
    tiles = {"tile": (64, 64), "photometric": "rgb"}
    tifffile.imwrite(tmp_path / "plain.tif", image, **tiles)
    tifffile.imwrite(tmp_path / "big.tif", image, bigtiff=True, **tiles)
    with tifffile.TiffWriter(tmp_path / "pyramid.tif") as file:
        file.write(image, **tiles)
        file.write(image[::2, ::2], subfiletype=1, **tiles)
    assert not is_slide(tmp_path / "plain.tif")
    for name in ("big", "pyramid"):
        assert is_slide(tmp_path / f"{name}.tif")
        slide = Slide(tmp_path / f"{name}.tif")
        np.testing.assert_array_equal(slide[0:300, 0:420], image)
        slide.close()
    cv2.imwrite(str(tmp_path / "a.png"), image)
    assert not is_slide(tmp_path / "a.png")
    assert is_slide(tmp_path / "a.svs")
    (tmp_path / "damaged.tif").write_bytes(b"II*")
    assert not is_slide(tmp_path / "damaged.tif")
    with pytest.raises(DataError, match=r"missing\.tif: no such file"):
        is_slide(tmp_path / "missing.tif")
