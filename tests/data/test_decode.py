import io
import os
import struct

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from cervseg_jax.data import headers
from cervseg_jax.data.decode import decode_image, decode_mask, read_bytes, read_image, read_mask
from cervseg_jax.data.jpeg import find_jpeg_damage
from cervseg_jax.errors import DataError


@pytest.fixture
def photo(rng):
    """A smooth color picture of 40 rows and 60 columns."""
    noise = cv2.GaussianBlur(rng.normal(size=(40, 60, 3)), (0, 0), 4)
    return np.uint8(255 * (noise - noise.min()) / (noise.max() - noise.min()))


def pack(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(data: bytes) -> np.ndarray:
    return decode_image(data, source="x")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_exif_orientation_is_applied_to_images_and_masks(photo, kind, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    options = {"lossless": True} if kind == "WEBP" else {"quality": 98} if kind == "JPEG" else {}
    data = pack(Image.fromarray(photo), kind, exif=exif, **options)
    want = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")).astype(int)
    np.testing.assert_allclose(decoded(data), want, atol=4)

    mask = Image.fromarray(np.uint8(255 * (photo[:, :, 0] > 128)))
    data = pack(mask, kind, exif=exif, **options)
    want = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("L")) >= 128
    np.testing.assert_array_equal(decode_mask(data, source="x").mask, want)


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("L", "PNG"),
        ("RGB", "PNG"),
        ("P", "PNG"),
        ("1", "PNG"),
        ("RGB", "TIFF"),
        ("L", "TIFF"),
        ("RGB", "BMP"),
        ("L", "BMP"),
    ],
)
def test_modes_equal_pillow(photo, mode, kind):
    image = Image.fromarray(photo)
    image = image.quantize(64) if mode == "P" else image.convert(mode)
    np.testing.assert_array_equal(decoded(pack(image, kind)), np.asarray(image.convert("RGB")))


def test_cmyk_is_close(photo):
    image = Image.fromarray(photo).convert("CMYK")
    np.testing.assert_allclose(decoded(pack(image, "JPEG", quality=98)).astype(int), image.convert("RGB"), atol=16)


def test_16_bit_is_rounded_to_8(photo):
    values = photo[:, :, 0].astype(np.uint16) * 257
    data = pack(Image.fromarray(values), "PNG")
    np.testing.assert_array_equal(decoded(data), np.repeat(photo[:, :, :1], 3, axis=2))
    _, packed = cv2.imencode(".png", np.minimum(photo, 254)[:, :, ::-1].astype(np.uint16) * 257 + 100)
    np.testing.assert_array_equal(decoded(packed.tobytes()), np.minimum(photo, 254))


def test_transparency_is_laid_on_white(photo):
    alpha = np.zeros((40, 60, 1), np.uint8)
    alpha[:, :30] = 255
    alpha[:, 30:40] = 128
    image = Image.fromarray(np.concatenate([photo, alpha], axis=2))
    white = Image.new("RGBA", image.size, "white")
    want = np.asarray(Image.alpha_composite(white, image).convert("RGB")).astype(int)
    np.testing.assert_allclose(decoded(pack(image, "PNG")), want, atol=1)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF", "WEBP"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.98])
def test_cut_files_are_refused(photo, kind, share):
    data = pack(Image.fromarray(photo), kind)
    with pytest.raises(DataError, match="^x: "):
        decoded(data[: int(len(data) * share)])


def png_chunk(kind: bytes, body: bytes) -> bytes:
    import zlib

    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


SIGNATURE = b"\x89PNG\r\n\x1a\n"
IHDR = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0))


def bad_files(photo):
    image = Image.fromarray(photo)
    png = pack(image, "PNG")
    tiff_exif = Image.Exif()
    tiff_exif[274] = 6
    return {
        "text": (b"hello world", "is not a PNG"),
        "gif": (pack(image.quantize(), "GIF"), "is a GIF, not a PNG"),
        "huge claim": (SIGNATURE + struct.pack(">I", 2**31 - 1) + b"IHDR" + b"x" * 200, "cut short"),
        "bomb": (
            SIGNATURE
            + png_chunk(b"IHDR", struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0))
            + png_chunk(b"IEND", b""),
            "pixels, more than",
        ),
        "no size": (SIGNATURE + png_chunk(b"IEND", b""), "has no size"),
        "no pixels": (SIGNATURE + IHDR + png_chunk(b"IEND", b""), "damaged|cannot be decoded"),
        "bad checksum": (png[:40] + bytes([png[40] ^ 1]) + png[41:], "damaged|cut short|cannot be decoded"),
        "animation": (SIGNATURE + IHDR + png_chunk(b"acTL", b"\0" * 8) + png_chunk(b"IEND", b""), "animation"),
        "pages": (pack(image, "TIFF", save_all=True, append_images=[image]), "several pages"),
        "rotated tiff": (pack(image, "TIFF", exif=tiff_exif), "rotated orientation"),
        "float tiff": (pack(Image.fromarray(photo[:, :, 0].astype(np.float32)), "TIFF"), "floating-point"),
        "bigtiff": (b"II+\0" + b"\0" * 100, "BigTIFF"),
        "zero width": (
            SIGNATURE + png_chunk(b"IHDR", struct.pack(">IIBBBBB", 0, 8, 8, 0, 0, 0, 0)) + png_chunk(b"IEND", b""),
            "impossible size",
        ),
    }


@pytest.mark.parametrize("name", list(bad_files(np.zeros((40, 60, 3), np.uint8))))
def test_bad_files_are_named(photo, name):
    data, message = bad_files(photo)[name]
    with pytest.raises(DataError, match=message):
        decoded(data)


def test_what_is_no_regular_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    for name, message in (
        ("pipe.png", "not a regular file"),
        ("empty.png", "zero bytes"),
        ("folder.png", "not a regular file"),
        ("loop.png", "cannot be opened"),
        ("none.png", "no such file"),
        ("nul\0.png", "cannot be opened"),
    ):
        with pytest.raises(DataError, match=message):
            read_bytes(tmp_path / name)


def test_strange_names_are_read(tmp_path, photo):
    for name in ("spa ce.png", "ünï.png", os.fsdecode(b"\xff\xfe.png")):
        (tmp_path / name).write_bytes(pack(Image.fromarray(photo), "PNG"))
        np.testing.assert_array_equal(read_image(tmp_path / name), photo)


DISC = np.uint8(np.hypot(*np.mgrid[-20:20, -30:30]) < 12)


@pytest.mark.parametrize(
    "values",
    [
        DISC,
        DISC * 255,
        DISC * np.uint16(65535),
        DISC.astype(np.uint16),
        DISC * 38,
        np.dstack([DISC * 255] * 3),
        DISC * 0,
    ],
    ids=["0/1", "0/255", "16-bit", "16-bit 0/1", "0/38", "gray RGB", "empty"],
)
@pytest.mark.parametrize("rule", ["half_range", "any_nonzero"])
def test_two_level_masks_mean_what_they_say(values, rule):
    _, packed = cv2.imencode(".png", values)
    mask, num_levels = decode_mask(packed.tobytes(), source="x", rule=rule)
    np.testing.assert_array_equal(mask, DISC * (values.max() > 0))
    assert num_levels == (2 if values.max() else 1)


def test_color_on_black_and_palettes():
    red = np.dstack([DISC * 0, DISC * 0, DISC * 128])
    _, packed = cv2.imencode(".png", red)
    np.testing.assert_array_equal(decode_mask(packed.tobytes(), source="x").mask, DISC)
    image = Image.fromarray(DISC, mode=None).convert("L")
    palette = Image.fromarray(np.asarray(image)).convert("P")
    palette.putpalette([0, 0, 0, 128, 0, 0] + [0] * 762)
    np.testing.assert_array_equal(decode_mask(pack(palette, "PNG"), source="x").mask, DISC)


def test_jpeg_masks_are_thresholded_and_the_other_rule_inflates_them():
    big = cv2.resize(DISC * 255, (240, 160), interpolation=cv2.INTER_NEAREST)
    _, packed = cv2.imencode(".jpg", cv2.GaussianBlur(big, (0, 0), 1), [cv2.IMWRITE_JPEG_QUALITY, 75])
    half = decode_mask(packed.tobytes(), source="x")
    inflated = decode_mask(packed.tobytes(), source="x", rule="any_nonzero")
    assert half.num_levels > 2
    assert abs(int(half.mask.sum()) - int((big > 0).sum())) < 0.02 * (big > 0).sum()
    assert inflated.mask.sum() > 1.08 * half.mask.sum()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.arange(40 * 60, dtype=np.uint16).reshape(40, 60) % 7, "7 levels up to 6 of 65535: instance labels"),
        (np.uint8(DISC + 2 * DISC[::-1]), "instance labels or class numbers"),
        (np.dstack([DISC * 255, DISC[:, ::-1] * 200, DISC[::-1] * 90]), "a mask with . colors"),
        (np.dstack([DISC * 255] * 3 + [DISC * 200]), "transparency"),
    ],
)
def test_ambiguous_masks_are_refused(values, message):
    values = np.roll(values, 5, axis=1) if values.ndim == 3 else values
    _, packed = cv2.imencode(".png", values)
    with pytest.raises(DataError, match=message):
        decode_mask(packed.tobytes(), source="x")


def test_real_jpeg_masks_inflate_by_about_a_fifth():
    from tests.helpers import SHARED

    folder = SHARED / "data" / "cnseg_clustered" / "masks"
    if not folder.is_dir():
        pytest.skip("the real images are not on this machine")
    paths = sorted(folder.iterdir())
    half = sum(int(read_mask(path).mask.sum()) for path in paths)
    inflated = sum(int(read_mask(path, rule="any_nonzero").mask.sum()) for path in paths)
    assert 1.05 < inflated / half < 1.30


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF", "WEBP"])
def test_mutated_files_end_as_an_image_or_one_message(photo, kind):
    whole = pack(Image.fromarray(photo), kind)
    rng = np.random.default_rng(12345)
    outcomes = {"image": 0, "refused": 0}
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(int(rng.integers(1, 6))):
            where = int(rng.integers(len(data)))
            choice = rng.integers(4)
            if choice == 0:
                data[where] ^= 1 << int(rng.integers(8))
            elif choice == 1:
                data[where : where + 4] = rng.bytes(4)
            elif choice == 2:
                del data[where : where + int(rng.integers(1, 30))]
            else:
                data[where:where] = rng.bytes(3)
        try:
            image = decoded(bytes(data))
            assert image.dtype == np.uint8
            assert image.ndim == 3
            outcomes["image"] += 1
        except DataError as error:
            assert str(error).startswith("x: ")
            outcomes["refused"] += 1
    assert outcomes["refused"] > 20


def test_headers_agree_with_pillow(photo):
    for kind in ("PNG", "JPEG", "BMP", "TIFF", "WEBP"):
        header = headers.read_header(pack(Image.fromarray(photo), kind))
        assert (header.width, header.height) == (60, 40), kind


@pytest.mark.parametrize("levels", [(0, 1, 255), (0, 1, 2, 255), (0, 3, 65535)])
def test_class_numbers_with_an_ignored_rim_are_no_mask(levels):
    mask = np.zeros((96, 96), np.uint16 if max(levels) > 255 else np.uint8)
    for index, level in enumerate(levels[1:-1]):
        cv2.circle(mask, (20 + 40 * index, 40), 9, level, -1)
        cv2.circle(mask, (20 + 40 * index, 40), 10, levels[-1], 2)
    _, packed = cv2.imencode(".png", mask)
    with pytest.raises(DataError, match=f"a mask with areas of the levels {', '.join(map(str, levels))}: classes, or"):
        decode_mask(packed.tobytes(), source="x")
    assert decode_mask(packed.tobytes(), source="x", rule="any_nonzero").mask.sum() == (mask > 0).sum()


def test_noise_near_black_is_no_class():
    noisy = DISC * 255
    noisy[2, 2:5] = 1
    _, packed = cv2.imencode(".png", noisy)
    np.testing.assert_array_equal(decode_mask(packed.tobytes(), source="x").mask, DISC)


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (b"GIF89a", "a GIF"),
        (b"\0\0\0\x0cjP  \r\n", "a JPEG 2000 image"),
        (b"\0\0\0\x20ftypavif", "an AVIF image"),
        (b"\0\0\0\x18ftypheic", "a HEIF image"),
        (b"8BPS", "a Photoshop file"),
        (bytes(128) + b"DICM", "a DICOM file"),
        (b"ZISRAWFILE", "a Zeiss CZI file"),
        (b"version https://git-lfs.github.com/spec/v1", "a pointer of Git LFS"),
        (b"P5 4 4 255\n", "a Netpbm image"),
    ],
)
def test_kinds_that_are_not_read_are_named(start, kind):
    with pytest.raises(DataError, match=f"x: is {kind}.*not a PNG, JPEG, BMP, WebP or TIFF image"):
        decoded(start + bytes(200))


def test_a_marker_within_a_jpeg_scan_is_damage(photo):
    """Decoders fill the rest with gray and report success."""
    whole = pack(Image.fromarray(photo), "JPEG", quality=95)
    start = whole.index(b"\xff\xda")
    at = start + (len(whole) - start) // 2
    for marker in (b"\xff\x21", b"\xff\xf7", b"\xff\xd3", whole[start : start + 14]):
        with pytest.raises(DataError, match="x: is damaged .* at byte|no marker"):
            decoded(whole[:at] + marker + whole[at:])


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 2}, {"restart_marker_blocks": 3}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_whole_jpeg_files_have_no_damage(photo, options, mode):
    whole = pack(Image.fromarray(photo).convert(mode), "JPEG", comment=b"\xff\x21", **options)
    assert find_jpeg_damage(whole) == ""
    assert find_jpeg_damage(whole + b"\xff\x21") == ""  # cameras append further pictures


@pytest.mark.parametrize("lossless", [True, False])
def test_webp_data_that_end_too_early_are_damage(photo, lossless):
    whole = pack(Image.fromarray(photo), "WEBP", lossless=lossless, quality=90)
    np.testing.assert_array_equal(decoded(whole), np.asarray(Image.open(io.BytesIO(whole)).convert("RGB")))
    start, length = 20, len(whole) - 20
    kept = length // 2
    # The bytes of the second half are lost, and the sizes say so.
    cut = whole[:4] + struct.pack("<I", 12 + kept) + whole[8:16] + struct.pack("<I", kept) + whole[20 : start + kept]
    with pytest.raises(DataError, match="x: is damaged|x: cannot be decoded"):
        decoded(cut)


@pytest.mark.parametrize("quality", [30, 95])
def test_lossy_masks_of_classes_or_labels_are_refused(quality):
    disks = np.zeros((120, 120), np.uint8)
    for center in ((30, 30), (80, 40), (50, 90)):
        cv2.circle(disks, center, 12, 255, -1)
    soft = cv2.GaussianBlur(disks, (0, 0), 3)

    def jpeg(values):
        return cv2.imencode(".jpg", values, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()

    for values in (disks, soft):
        assert decode_mask(jpeg(values), source="x").mask.any()
    for values in (np.where(disks, 255, cv2.dilate(disks, np.ones((25, 25))) // 2), disks // 2 + disks // 32):
        with pytest.raises(DataError, match="a mask with areas of gray"):
            decode_mask(jpeg(values), source="x")


@pytest.mark.parametrize("marker", [b"\xff\xdb", b"\xff\xc4"])
def test_a_scan_without_its_table_is_damage(photo, marker):
    whole = cv2.imencode(".jpg", photo)[1].tobytes()
    last = whole.rindex(marker, 0, whole.index(b"\xff\xda"))
    damaged = whole[: last + 4] + bytes([whole[last + 4] ^ 2]) + whole[last + 5 :]
    assert "a scan without its table" in find_jpeg_damage(damaged)
    with pytest.raises(DataError, match="a scan without its table"):
        decode_image(damaged, source="x.jpg")
