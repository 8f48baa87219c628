"""Pyramids hold the same values as the arrays, by OpenCV (libtiff) and TiffFile, and are written by bands."""

import re
import xml.etree.ElementTree as ElementTree

import cv2
import numpy as np
import pytest

from cervseg_jax.segmentation import maps, pyramids
from cervseg_jax.segmentation.pyramids import write_label_pyramid, write_probability_pyramid

tifffile = pytest.importorskip("tifffile", reason="the extra `slides` is not installed")
SHAPE = (1301, 2050)


@pytest.fixture
def labels(rng):
    return np.kron(rng.integers(0, 900, (131, 205)), np.ones((10, 10), np.int32)).astype(np.int32)[: SHAPE[0], :]


def read(path):
    """Returns the finest level as OpenCV reads it, and all levels as TiffFile does."""
    finest = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
    with tifffile.TiffFile(path) as file:
        return finest, [level.asarray() for level in file.series[0].levels]


def test_labels_keep_their_values_in_all_levels(tmp_path, labels):
    path = tmp_path / "a.ome.tif"
    write_label_pyramid(path, labels, mpp=0.25)
    finest, levels = read(path)
    np.testing.assert_array_equal(finest, labels)
    assert [level.shape for level in levels] == [labels.shape, (651, 1025), (326, 513), (163, 257)]
    for index, level in enumerate(levels):
        np.testing.assert_array_equal(level, labels[:: 2**index, :: 2**index])
        assert level.dtype == np.uint16


def test_labels_beyond_16_bits_have_32(tmp_path, labels):
    labels[5, 7] = 70_000
    write_label_pyramid(tmp_path / "a.ome.tif", labels)
    finest, levels = read(tmp_path / "a.ome.tif")
    assert levels[0].dtype == np.int32
    assert finest[5, 7] == 70_000


def test_probabilities_are_averaged(tmp_path, rng):
    probs = rng.random((700, 801), np.float32).astype(np.float16)
    write_probability_pyramid(tmp_path / "a.ome.tif", probs)
    finest, levels = read(tmp_path / "a.ome.tif")
    expected = np.round(probs.astype(np.float32) * 65535).astype(np.uint16)
    np.testing.assert_array_equal(finest, expected)
    even = np.pad(expected, ((0, 0), (0, 1)), mode="edge").astype(np.float64)
    np.testing.assert_array_equal(levels[1], np.floor(even.reshape(350, 2, 401, 2).mean(axis=(1, 3)) + 0.5))


def test_pixel_size_and_structure_are_those_of_ome_tiff(tmp_path, labels):
    path = tmp_path / "a.ome.tif"
    write_label_pyramid(path, labels, mpp=0.25)
    with tifffile.TiffFile(path) as file:
        assert file.is_bigtiff
        assert file.is_ome
        page = file.pages[0]
        assert page.is_tiled
        numerator, denominator = page.tags["XResolution"].value
        assert (numerator / denominator, page.tags["ResolutionUnit"].value) == (40_000, 3)
        assert len(page.tags["SubIFDs"].value) == 3
        root = ElementTree.fromstring(file.ome_metadata)
    space = {"ome": re.match(r"\{(.*)\}", root.tag)[1]}
    pixels = root.find("ome:Image/ome:Pixels", space)
    stated = {name: pixels.get(name) for name in ("SizeX", "SizeY", "PhysicalSizeX", "PhysicalSizeYUnit", "Type")}
    assert stated == {
        "SizeX": "2050",
        "SizeY": "1301",
        "PhysicalSizeX": "0.25",
        "PhysicalSizeYUnit": "µm",
        "Type": "uint16",
    }


def test_the_same_labels_give_the_same_bytes_in_memory_and_on_disk(tmp_path, labels, monkeypatch):
    for folder in ("one", "other"):
        (tmp_path / folder / "instance_pyramids").mkdir(parents=True)
        write_label_pyramid(tmp_path / folder / "instance_pyramids" / "a.ome.tif", labels, scratch=tmp_path)
        monkeypatch.setattr(maps, "MAX_ELEMENTS_IN_MEMORY", 1000)
    one, other = ((tmp_path / name / "instance_pyramids" / "a.ome.tif").read_bytes() for name in ("one", "other"))
    assert one == other
    assert not list(tmp_path.glob("*.tmp"))


def test_bands_are_all_that_is_read_of_a_large_map(tmp_path, labels):
    class Mapped(np.ndarray):
        most = 0

        def __getitem__(self, index):
            if isinstance(index, slice):
                Mapped.most = max(Mapped.most, index.stop - index.start)
            return super().__getitem__(index)

    tall = np.tile(labels, (3, 1)).view(Mapped)
    write_label_pyramid(tmp_path / "a.ome.tif", tall)
    assert 0 < Mapped.most <= pyramids.BAND_ROWS


def test_a_failed_write_leaves_nothing(tmp_path, labels, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pyramids, "_tiles", full)
    with pytest.raises(OSError, match="No space left"):
        write_label_pyramid(tmp_path / "a.ome.tif", labels)
    assert list(tmp_path.iterdir()) == []
