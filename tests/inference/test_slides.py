"""A slide on disk is read window by window and gives what the image in memory gives."""

import numpy as np
import pytest

from cervseg_jax.errors import DataError
from cervseg_jax.inference.slides import Slide
from cervseg_jax.inference.tiling import predict_tiled

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
