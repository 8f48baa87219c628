"""A slide on disk is read window by window and gives what the image in memory gives."""

from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from PIL import Image

from cervseg_jax.data.slides import Slide, is_slide
from cervseg_jax.errors import DataError
from cervseg_jax.segmentation.predict import Predictor
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


def test_threads_may_read_windows_at_the_same_time(slide_and_image, rng):
    slide, image = slide_and_image
    starts = rng.integers(0, 200, (200, 2)).tolist()
    with ThreadPoolExecutor(8) as pool:
        windows = list(pool.map(lambda start: slide[start[0] : start[0] + 90, start[1] : start[1] + 70], starts))
    for (top, left), window in zip(starts, windows, strict=True):
        np.testing.assert_array_equal(window, image[top : top + 90, left : left + 70])


def test_tiles_of_a_slide_equal_those_of_the_image(slide_and_image):
    slide, image = slide_and_image
    one, other = (
        np.concatenate(
            [
                rows
                for _, rows in predict_tiled(
                    Predictor(lambda tiles: (tiles[..., :1] / 255).astype(np.float32), (64, 96), 4, ("mask",)),
                    source,
                    overlap_px=16,
                )
            ]
        )
        for source in (slide, image)
    )
    np.testing.assert_array_equal(one, other)


def test_what_is_no_slide_is_named(tmp_path):
    (tmp_path / "a.svs").write_bytes(b"nonsense")
    with pytest.raises(DataError, match=r"a\.svs: cannot be read as a slide"):
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


def test_gray_16_bits_and_transparency_are_read_as_rgb(tmp_path, rng):
    rgb = rng.integers(0, 256, (96, 128, 3), np.uint8)
    gray, white = rgb[..., 0], np.full((96, 128), 255, np.uint8)
    wide = rgb.astype(np.uint16)
    wide[0, 0] = 255
    big = {"bigtiff": True}
    cases = {
        "gray": (gray, np.dstack([gray] * 3), {"photometric": "minisblack"}),
        "inverted": (255 - gray, np.dstack([gray] * 3), {"photometric": "miniswhite"}),
        "gray16": (gray.astype(np.uint16) * 257, np.dstack([gray] * 3), {"photometric": "minisblack"}),
        "rgb16": (wide * 257, wide, {"photometric": "rgb"}),
        "rgba": (np.dstack([rgb, white]), rgb, {"photometric": "rgb", "extrasamples": ["unassalpha"]}),
        "clear": (np.dstack([rgb, 0 * white]), 0 * rgb + 255, {"photometric": "rgb", "extrasamples": ["unassalpha"]}),
    }
    for name, (stored, wanted, options) in cases.items():
        tifffile.imwrite(tmp_path / f"{name}.tif", stored, **options, **big)
        slide = Slide(tmp_path / f"{name}.tif")
        assert slide.shape == (96, 128, 3)
        np.testing.assert_array_equal(slide[3:50, 7:90], wanted[3:50, 7:90], err_msg=name)
        assert slide[3:50, 7:90].dtype == np.uint8
        slide.close()


def test_twelve_bits_of_a_slide_are_scaled_as_such(tmp_path, rng):
    image = rng.integers(0, 4096, (96, 128, 3), np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="rgb", bigtiff=True)
    slide = Slide(tmp_path / "a.tif")
    np.testing.assert_array_equal(slide[:, :], np.rint(image / 4095 * 255).astype(np.uint8))
    slide.close()
    slide = Slide(tmp_path / "a.tif", bit_depth=16)
    np.testing.assert_array_equal(slide[:, :], np.rint(image / 257).astype(np.uint8))
    slide.close()


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((3, 96, 128), {"photometric": "minisblack"}, "holds 3 pages; save one gray or RGB picture per file"),
        ((2, 96, 128, 3), {"photometric": "rgb"}, "holds 2 pages"),
        ((2, 96, 128), {"photometric": "minisblack", "metadata": {"axes": "CYX"}}, "holds 2 channels"),
        ((2, 96, 128), {"photometric": "minisblack", "metadata": {"axes": "TYX"}}, "holds 2 points in time"),
        ((96, 128, 5), {"photometric": "minisblack", "planarconfig": "contig", "bigtiff": True}, "has 5 channels"),
    ],
)
def test_stacks_and_channels_are_named(tmp_path, shape, options, message):
    name = "a.ome.tif" if "metadata" in options else "a.tif"
    tifffile.imwrite(tmp_path / name, np.zeros(shape, np.uint8), **options)
    with pytest.raises(DataError, match=message):
        Slide(tmp_path / name)


def test_a_slide_that_is_cut_short_is_refused(tmp_path, rng):
    image = rng.integers(0, 256, (300, 420, 3), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", image, tile=(64, 64), photometric="rgb", bigtiff=True)
    data = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"a\.tif: is "):
        Slide(tmp_path / "a.tif")


def test_damage_within_a_slide_is_an_error_of_ours(tmp_path, rng):
    image = rng.integers(0, 256, (128, 128, 3), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", image, tile=(64, 64), photometric="rgb", bigtiff=True, compression="zlib")
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        offset = file.pages[0].dataoffsets[0]
    data = bytearray((tmp_path / "a.tif").read_bytes())
    data[offset + 20 : offset + 400] = bytes(380)
    (tmp_path / "a.tif").write_bytes(bytes(data))
    slide = Slide(tmp_path / "a.tif")
    with pytest.raises(DataError, match="is damaged and cannot be read at row 0, column 0"):
        slide[0:64, 0:64]
    slide.close()


@pytest.mark.parametrize("tag", [324, 325])
def test_tiles_that_the_directory_does_not_list_are_not_shown_black(tmp_path, rng, tag):
    image = rng.integers(1, 256, (300, 420, 3), np.uint8)
    path = tmp_path / "a.svs"
    tifffile.imwrite(path, image, tile=(64, 64), photometric="rgb")
    with tifffile.TiffFile(path) as file:
        at = file.pages[0].tags[tag].offset
    data = bytearray(path.read_bytes())
    data[at : at + 2] = (65000).to_bytes(2, "little")
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"a\.svs: "):
        Slide(path)


def test_tags_of_another_type_are_one_message(tmp_path, rng):
    path = tmp_path / "a.svs"
    tifffile.imwrite(path, rng.integers(1, 256, (300, 420, 3), np.uint8), tile=(64, 64), photometric="rgb")
    with tifffile.TiffFile(path) as file:
        at = file.pages[0].tags[262].offset
    data = bytearray(path.read_bytes())
    data[at + 4 : at + 8] = (2).to_bytes(4, "little")  # two values instead of one
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"a\.svs: "):
        Slide(path)


def test_pictures_that_would_be_read_in_other_colors_or_turned_are_refused(tmp_path, rng):
    image = rng.integers(0, 256, (96, 128, 3), np.uint8)
    path = tmp_path / "a.tif"
    Image.fromarray(image).convert("YCbCr").save(path)
    with pytest.raises(DataError, match="has YCbCr colors, which are not read; save RGB"):
        Slide(path)
    tifffile.imwrite(path, image, photometric="rgb", extratags=[(274, 3, 1, 6, True)])
    with pytest.raises(DataError, match="rotated orientation tag"):
        Slide(path)
    with tifffile.TiffWriter(path) as writer:
        writer.write(image[::4, ::4].copy(), photometric="rgb")
        writer.write(image, photometric="rgb")
    with pytest.raises(DataError, match=r"the first is not the largest \(128x96\)"):
        Slide(path)
