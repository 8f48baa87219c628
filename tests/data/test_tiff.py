"""TIFF files give the pixels that they mean, or one line that says what is not read."""

import io
import sys

import cv2
import numpy as np
import pytest

from cervseg_jax.data.decode import decode_image
from cervseg_jax.data.label_files import read_labels
from cervseg_jax.data.lzw import expanded_size_lzw
from cervseg_jax.errors import DataError

tifffile = pytest.importorskip("tifffile", reason="the extra `formats` is not installed")
imagecodecs = pytest.importorskip("imagecodecs", reason="the extra `formats` is not installed")


@pytest.fixture
def photo(rng):
    smooth = cv2.GaussianBlur(rng.normal(size=(96, 130, 3)), (0, 0), 4)
    return np.clip(smooth * 500 + 128, 0, 255).astype(np.uint8)


@pytest.fixture
def cells(rng):
    image = np.full((96, 130, 3), 230, np.uint8)
    for _ in range(6):
        cv2.circle(image, tuple(int(v) for v in rng.integers(10, 90, 2)), 9, (120, 60, 110), -1)
    return image


def packed(image, **options):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, image, **options)
    return buffer.getvalue()


def decoded(data):
    return decode_image(data, source="x.tif")


CODECS = ("jpeg2000", "aperio_jp2000_rgb", "jpegxl", "jpegxr", "png", "zstd", "webp", "lzma", "lerc")


@pytest.mark.parametrize("codec", CODECS)
def test_codecs_that_opencv_lacks_are_read_with_the_extra(photo, codec):
    np.testing.assert_array_equal(decoded(packed(photo, photometric="rgb", compression=codec)), photo)


@pytest.mark.parametrize(
    ("codec", "name"), [("jpeg2000", r"JPEG 2000 \(34712\)"), ("zstd", "Zstandard"), ("jpegxl", "JPEG XL")]
)
def test_codecs_are_named_without_the_extra(photo, codec, name, monkeypatch):
    data = packed(photo, photometric="rgb", compression=codec)
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    with pytest.raises(DataError, match=rf"x\.tif: is compressed with {name}.*needs the extra: pip install"):
        decoded(data)


def test_ycbcr_jpeg_2000_is_refused_rather_than_shown_in_false_colors(photo):
    with pytest.raises(DataError, match=r"JPEG 2000 \(Aperio, YCbCr\) \(33003\), which is not read"):
        decoded(packed(photo, photometric="rgb", compression="aperio_jp2000_ycbc"))


LAYOUTS = ({"rowsperstrip": 16}, {"tile": (32, 32)}, {"rowsperstrip": 96})


@pytest.mark.parametrize("codec", ["zlib", "lzw", "packbits"])
def test_damage_in_strips_is_an_error_or_what_any_decoder_sees(codec, photo, cells, rng):
    """Deflate's checksum shows all damage. LZW and PackBits have none: never black, and as an independent decoder."""
    refused = 0
    for image in (photo, cells):
        for layout in LAYOUTS:
            good = packed(image, photometric="rgb", compression=codec, **layout)
            with tifffile.TiffFile(io.BytesIO(good)) as file:
                blocks = list(zip(file.pages[0].dataoffsets, file.pages[0].databytecounts, strict=True))
            for _ in range(30):
                bad = bytearray(good)
                offset, size = blocks[rng.integers(len(blocks))]
                at = offset + int(rng.integers(size))
                length = min(int(rng.choice([1, 4, 32])), offset + size - at)
                bad[at : at + length] = rng.integers(0, 256, length, np.uint8).tobytes()
                try:
                    pixels = decoded(bytes(bad))
                except DataError:
                    refused += 1
                    continue
                if codec == "zlib":
                    np.testing.assert_array_equal(pixels, image)
                else:
                    with tifffile.TiffFile(io.BytesIO(bytes(bad))) as file:
                        np.testing.assert_array_equal(pixels, file.pages[0].asarray())
    assert refused > {"zlib": 170, "lzw": 90, "packbits": 20}[codec]


@pytest.mark.parametrize("codec", ["zlib", "lzw", "packbits", None])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("order", ["<", ">"])
def test_whole_files_are_accepted(photo, codec, layout, order):
    predictors = (False, True) if codec in ("zlib", "lzw") else (False,)
    for predictor in predictors:
        for image in (photo, photo.astype(np.uint16) * 257):
            data = packed(image, photometric="rgb", compression=codec, predictor=predictor, byteorder=order, **layout)
            np.testing.assert_array_equal(decoded(data), photo)


def test_sizes_of_lzw_data_without_expanding_them(rng):
    for size in (1, 255, 256, 4000, 70000):
        for values in (
            rng.integers(0, 256, size, np.uint8),
            np.zeros(size, np.uint8),
            rng.integers(0, 3, size, np.uint8),
            np.uint8(np.arange(size) // 7 % 256),
        ):
            assert expanded_size_lzw(imagecodecs.lzw_encode(values.tobytes())) == size
    assert expanded_size_lzw(bytes([0x80, 0x7F, 0xFF, 0xFF])) == -1  # a code before its entry


def test_planes_and_white_is_zero_in_16_bits(photo):
    planes = np.moveaxis(photo.astype(np.uint16) * 257, 2, 0)
    for layout in ({}, {"tile": (32, 32)}, {"compression": "zlib", "rowsperstrip": 16}):
        data = packed(planes, photometric="rgb", planarconfig="separate", **layout)
        np.testing.assert_array_equal(decoded(data), photo)
    gray = photo[:, :, 0]
    data = packed(65535 - gray.astype(np.uint16) * 257, photometric="miniswhite")
    np.testing.assert_array_equal(decoded(data), np.dstack([gray] * 3))


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("kind", ["unassalpha", "assocalpha"])
def test_transparency_is_laid_on_white_once(photo, kind, depth):
    alpha = 128
    wanted = ((photo.astype(int) * alpha + 255 * (255 - alpha) + 127) // 255).astype(int)
    colors = (photo.astype(int) * alpha + 127) // 255 if kind == "assocalpha" else photo
    layers = np.dstack([colors, np.full(photo.shape[:2], alpha)])
    layers = layers.astype(np.uint8) if depth == 8 else (layers * 257).astype(np.uint16)
    result = decoded(packed(layers, photometric="rgb", extrasamples=[kind]))
    np.testing.assert_allclose(result.astype(int), wanted, atol=1)


@pytest.mark.parametrize(
    ("channels", "options", "message"),
    [
        (2, {"photometric": "minisblack", "planarconfig": "contig"}, "has 2 channels"),
        (3, {"photometric": "minisblack", "planarconfig": "contig"}, "has 3 channels, not gray or RGB"),
        (5, {"photometric": "minisblack", "planarconfig": "contig"}, "has 5 channels"),
        (4, {"photometric": "rgb", "extrasamples": ["unspecified"]}, "the last is not said to be transparency"),
        (3, {"photometric": "cielab"}, "CIELab"),
    ],
)
def test_what_is_no_picture_in_rgb_is_named(rng, channels, options, message):
    image = rng.integers(0, 256, (40, 56, channels), np.uint8)
    with pytest.raises(DataError, match=message):
        decoded(packed(image, **options))


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "uint32", "int64", "uint64", "float32", "float64"])
def test_labels_of_any_width_are_read(tmp_path, dtype):
    labels = np.zeros((48, 64), np.int64)
    labels[4:10, 4:10], labels[10:20, 4:10], labels[30:40, 30:60] = 1, 2, 117
    tifffile.imwrite(tmp_path / "a.tif", labels.astype(dtype), photometric="minisblack", compression="zlib")
    actual, has_instances = read_labels(tmp_path / "a.tif")
    assert has_instances and actual.dtype == np.int32
    np.testing.assert_array_equal(actual, labels)


def test_labels_beyond_int32_are_renumbered_and_others_refused(tmp_path):
    labels = np.zeros((48, 64), np.uint32)
    labels[4:10, 4:10], labels[20:30, 4:10] = 7, 4_000_000_000
    tifffile.imwrite(tmp_path / "a.tif", labels, photometric="minisblack")
    actual, _ = read_labels(tmp_path / "a.tif")
    assert np.unique(actual).tolist() == [0, 1, 2] and actual[25, 5] == 2
    for bad in (labels.astype(np.float32) / 2, -np.minimum(labels, 9).astype(np.int32)):
        tifffile.imwrite(tmp_path / "a.tif", bad, photometric="minisblack")
        with pytest.raises(DataError, match="not whole numbers|negative labels"):
            read_labels(tmp_path / "a.tif")


def test_palettes_of_labels_are_read_as_indices(tmp_path):
    from PIL import Image

    labels = np.zeros((48, 64), np.uint8)
    labels[4:10, 4:10], labels[10:20, 4:10], labels[30:40, 30:60] = 1, 2, 3
    image = Image.new("P", (64, 48))
    image.putdata(labels.ravel().tolist())
    image.putpalette([0, 0, 0, 255, 0, 0, 255, 0, 0, 0, 0, 255])  # two labels of one color
    for name, options in (("a.png", {}), ("b.png", {"bits": 2}), ("c.tif", {}), ("d.tif", {"compression": "tiff_lzw"})):
        image.save(tmp_path / name, **options)
        actual, has_instances = read_labels(tmp_path / name)
        assert has_instances, name
        np.testing.assert_array_equal(actual, labels, err_msg=name)


def with_tag(data, tag, new_tag):
    """Renames a tag in the directory of a little-endian file."""
    start = int.from_bytes(data[4:8], "little")
    for at in range(start + 2, start + 2 + 12 * int.from_bytes(data[start : start + 2], "little"), 12):
        if int.from_bytes(data[at : at + 2], "little") == tag:
            return data[:at] + new_tag.to_bytes(2, "little") + data[at + 2 :]
    raise AssertionError(tag)


@pytest.mark.parametrize("codec", ["lzw", None, "zlib"])
def test_tiles_without_a_size_are_damage(photo, codec):
    data = packed(photo, photometric="rgb", compression=codec, tile=(32, 32))
    with pytest.raises(DataError, match="is damaged"):
        decoded(with_tag(data, 322, 65000))


def test_jpeg_strips_of_another_height_than_the_tags_say_are_damage(photo):
    data = packed(photo, photometric="rgb", compression="jpeg", rowsperstrip=16)
    decoded(data)
    with pytest.raises(DataError, match="strip or tile 1 of 1 does not hold"):
        decoded(with_tag(data, 278, 65000))


def test_a_directory_without_data_is_one_message(photo):
    data = packed(photo, photometric="rgb", compression="zstd", rowsperstrip=16)
    with pytest.raises(DataError, match="x.tif: is damaged"):
        decoded(with_tag(data, 273, 65000))


def test_one_bit_labels_of_an_extra_codec_are_read(cells, tmp_path):
    mask = cells[..., 0] < 200
    (tmp_path / "a.tif").write_bytes(packed(mask, compression="zstd", photometric="minisblack"))
    labels, _ = read_labels(tmp_path / "a.tif")
    np.testing.assert_array_equal(labels, mask)
