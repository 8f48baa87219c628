import numpy as np
import pytest

from cervseg_jax.data.pixel_size import pixel_size_um

tifffile = pytest.importorskip("tifffile", reason="the extra `slides` is not installed")
IMAGE = np.zeros((32, 32), np.uint8)


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({"resolution": (20000, 20000), "resolutionunit": "CENTIMETER"}, 0.5),
        ({"resolution": (50800, 50800), "resolutionunit": "INCH"}, 0.5),
        ({"resolution": (300, 300), "resolutionunit": "INCH"}, None),  # of a printer
        ({"resolution": (20000, 10000), "resolutionunit": "CENTIMETER"}, None),
        ({"resolution": (2, 2), "resolutionunit": "NONE"}, None),
        ({"description": "Aperio Image Library v11\n32x32|AppMag = 20|MPP = 0.2525"}, 0.2525),
        ({}, None),
    ],
)
def test_sizes_in_tags(tmp_path, options, size, big):
    tifffile.imwrite(tmp_path / "a.tif", IMAGE, photometric="minisblack", metadata=None, bigtiff=big, **options)
    assert pixel_size_um(tmp_path / "a.tif") == (None if size is None else pytest.approx(size))


def test_sizes_of_ome_and_imagej(tmp_path):
    metadata = {"axes": "YX", "PhysicalSizeX": 250.0, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.25}
    tifffile.imwrite(tmp_path / "a.ome.tif", IMAGE, photometric="minisblack", metadata=metadata)
    assert pixel_size_um(tmp_path / "a.ome.tif") == pytest.approx(0.25)
    tifffile.imwrite(tmp_path / "b.tif", IMAGE, imagej=True, resolution=(4.0, 4.0), metadata={"unit": "um"})
    assert pixel_size_um(tmp_path / "b.tif") == pytest.approx(0.25)


def test_files_without_a_size(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "b.tif").write_bytes(b"II*\0\xff\xff")
    (tmp_path / "c.tif").write_bytes(b"")
    assert [pixel_size_um(tmp_path / name) for name in ("a.png", "b.tif", "c.tif", "missing.tif")] == [None] * 4
