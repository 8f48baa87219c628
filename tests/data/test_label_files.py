import struct
import zlib

import cv2
import numpy as np
import pytest

from cervseg_jax.data.label_files import are_label_maps, label_stats, read_labels
from cervseg_jax.errors import DataError


@pytest.fixture
def labels():
    """Three nuclei and a label that is missing."""
    found = np.zeros((24, 30), np.int64)
    for label, (top, left) in {1: (2, 3), 2: (2, 20), 5: (14, 9)}.items():
        found[top : top + 6, left : left + 7] = label
    return found


def tiff(path, values):
    assert cv2.imwrite(str(path), values)
    return path


def palette_png(path, indices, *, depth=8, colors=256):
    """A PNG with a palette, written by hand: random colors, 0 is black."""
    rng = np.random.default_rng(0)
    palette = rng.integers(0, 256, (min(colors, 2**depth), 3), np.uint8)
    palette[0] = 0
    bits = np.unpackbits(indices.astype(np.uint8)[..., None], axis=2)[..., 8 - depth :].reshape(len(indices), -1)
    rows = np.packbits(bits, axis=1)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", indices.shape[1], indices.shape[0], depth, 3, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"PLTE", palette.tobytes())
        + chunk(b"tRNS", b"\0\xff")
        + chunk(b"IDAT", zlib.compress(raw))
        + chunk(b"IEND", b"")
    )
    return path


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "float32", "float64"])
def test_whole_numbers_of_any_width_are_labels(tmp_path, labels, dtype):
    path = tiff(tmp_path / "a.tif", labels.astype(dtype))
    values, has_instances = read_labels(path)
    assert has_instances
    assert values.dtype == np.int32
    np.testing.assert_array_equal(values, labels)


@pytest.mark.parametrize("dtype", ["uint32", "int64", "uint64"])
def test_widths_that_opencv_may_not_read_are_labels_or_refused(tmp_path, labels, dtype):
    tifffile = pytest.importorskip("tifffile")
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, labels.astype(dtype))
    try:
        values, _ = read_labels(path)
    except DataError as error:
        assert "cannot be decoded" in str(error)
        return
    np.testing.assert_array_equal(values, labels)


def test_labels_beyond_32_bits_are_numbered_anew(tmp_path, labels):
    big = labels.astype(np.float64)
    big[labels == 5] = 2.0**40
    values, _ = read_labels(tiff(tmp_path / "a.tif", big))
    np.testing.assert_array_equal(values, np.where(labels == 5, 3, labels))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full((8, 8), -1, np.int16), "has negative labels"),
        (np.full((8, 8), 1.5, np.float32), "not whole numbers"),
        (np.full((8, 8), np.nan, np.float32), "not whole numbers"),
    ],
)
def test_values_that_are_no_labels(tmp_path, values, message):
    with pytest.raises(DataError, match=message):
        read_labels(tiff(tmp_path / "a.tif", values))


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_palette_indices_are_labels(tmp_path, depth):
    indices = np.random.default_rng(depth).integers(0, min(2**depth, 200), (13, 21))
    values, _ = read_labels(palette_png(tmp_path / "a.png", indices, depth=depth))
    np.testing.assert_array_equal(values, indices)


def png(path, values):
    cv2.imwrite(str(path), values)
    return path


def decide(tmp_path, *maps):
    stats = [label_stats(png(tmp_path / f"{index}.png", values))[0] for index, values in enumerate(maps)]
    return are_label_maps(stats)


def discs(*centers, values=None, shape=(60, 60)):
    found = np.zeros(shape, np.uint16)
    for index, center in enumerate(centers):
        cv2.circle(found, center, 7, int(values[index]) if values else index + 1, -1)
    return found


ONE, TWO, THREE = discs((15, 15)), discs((15, 15), (40, 40)), discs((15, 15), (40, 40), (15, 40))
EMPTY = np.zeros((60, 60), np.uint16)


@pytest.mark.parametrize(
    ("maps", "expected"),
    [
        ([ONE, THREE], True),
        ([ONE, EMPTY, TWO], True),
        ([ONE, ONE], True),  # single cells
        ([EMPTY, EMPTY], True),
        ([ONE * 7, ONE * 3], True),  # numbers that go on from file to file
        ([discs((15, 15), values=[255]), THREE], True),
        ([(ONE * 255).astype(np.uint8)], False),  # a mask
        ([(THREE > 0) * np.uint16(65535), EMPTY], False),
        ([(THREE > 0) * np.uint16(1), (TWO > 0) * np.uint16(1)], False),  # one class, several pieces
        ([np.where(ONE, 255, np.where(TWO, 1, 0)).astype(np.uint8)], False),  # ignored pixels
        ([discs((15, 15), (40, 40), (15, 40), (40, 15), values=[1, 2, 1, 2])], False),  # classes
    ],
)
def test_the_folder_decides_whether_files_are_label_maps(tmp_path, maps, expected):
    assert decide(tmp_path, *maps) is expected


def test_jpeg_files_are_masks(tmp_path):
    path = tmp_path / "a.jpg"
    cv2.imwrite(str(path), (THREE > 0).astype(np.uint8) * 255)
    stats, size = label_stats(path)
    assert not are_label_maps([stats])
    assert size == (60, 60)
    values, has_instances = read_labels(path)
    assert not has_instances
    assert set(np.unique(values)) == {0, 1}


def test_instance_files_of_a_dataset_are_labels_even_with_one_nucleus(tmp_path):
    assert read_labels(png(tmp_path / "a.png", ONE))[1]
    assert read_labels(png(tmp_path / "b.png", EMPTY))[1]
    assert not read_labels(png(tmp_path / "c.png", ONE * 255))[1]
