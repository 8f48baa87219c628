"""The same picture is read from every format of slides, and what is no picture of stained tissue is refused."""

import json
from typing import Any

import cv2
import numpy as np
import pytest

from cervseg_jax.data.pixel_size import pixel_size_um
from cervseg_jax.data.slides import Slide, is_slide, slides_in
from cervseg_jax.errors import DataError
from tests.slide_files import TILE, change_json, write_dicom, write_ome_tiff, write_ome_zarr, write_pyramid

pytest.importorskip("tiffslide", reason="the extra `slides` is not installed")
pytest.importorskip("wsidicom", reason="the extra `dicom` is not installed")
SHAPE = (280, 420)
FLUORESCENCE = [{"label": name, "color": color} for name, color in (("DAPI", "0000FF"), ("FITC", "00FF00"))]


@pytest.fixture
def image(rng):
    return rng.integers(0, 256, (*SHAPE, 3), np.uint8)


def planes_of(image):
    return np.moveaxis(image, 2, 0)


FORMATS = {
    "pyramid.tif": lambda path, image: write_pyramid(path, image, mpp=0.5),
    "a.ome.tif": lambda path, image: write_ome_tiff(path, image, mpp=0.5),
    "planar.ome.tif": lambda path, image: write_ome_tiff(
        path, planes_of(image), axes="SYX", mpp=0.5, planarconfig="separate"
    ),
    "named.ome.tif": lambda path, image: write_ome_tiff(
        path, planes_of(image), axes="CYX", mpp=0.5, metadata={"Channel": {"Name": ["Red", "Green", "Blue"]}}
    ),
    "v4.ome.zarr": lambda path, image: write_ome_zarr(
        path, planes_of(image)[None, :, None], axes="tczyx", mpp=0.5, version="0.4"
    ),
    "v5.zarr": lambda path, image: write_ome_zarr(path, planes_of(image), mpp=0.5),
    "dicom": lambda path, image: write_dicom(path, image, mpp=0.5),
}


@pytest.mark.parametrize("name", FORMATS)
def test_windows_equal_the_picture_and_the_pixel_size_is_read(tmp_path, image, name):
    path = tmp_path / name
    FORMATS[name](path, image)
    assert is_slide(path)
    assert pixel_size_um(path) == pytest.approx(0.5)
    slide: Any = Slide(path)
    assert slide.shape == image.shape
    assert slide.plane == ""
    np.testing.assert_array_equal(slide[0:280, 0:420], image)
    np.testing.assert_array_equal(slide[100:200, 127:300], image[100:200, 127:300])
    assert slide[0:5, 0:5].dtype == np.uint8
    slide.close()


@pytest.mark.parametrize("name", ["z.ome.tif", "gray.ome.tif", "z.zarr", "dicom"])
def test_the_middle_plane_of_a_stack_is_read(tmp_path, image, name):
    stack = np.stack([image // 2, 255 - image, image])
    path = tmp_path / name
    if name == "gray.ome.tif":
        stack = stack[..., 0]
        write_ome_tiff(path, stack, axes="ZYX")
    elif name == "z.ome.tif":
        write_ome_tiff(path, stack, axes="ZYXS")
    elif name == "z.zarr":
        write_ome_zarr(path, np.moveaxis(stack, 3, 0), axes="czyx")
    else:
        write_dicom(path, stack, planes=3)
    slide = Slide(path)
    assert slide.plane == "2 of 3"
    expected = stack[1] if stack.ndim == 4 else np.repeat(stack[1, :, :, None], 3, axis=2)
    np.testing.assert_array_equal(slide[3:270, 5:333], expected[3:270, 5:333])
    slide.close()


@pytest.mark.parametrize("name", ["g.ome.tif", "g.zarr", "estimated.ome.tif", "dicom"])
def test_gray_of_12_bits_is_scaled_alike_in_all_windows(tmp_path, rng, name):
    """The brightest pixel lies in the last row: a window that is scaled by its own values would be brighter."""
    gray = rng.integers(0, 1000, SHAPE, np.uint16)
    gray[-1, -1] = 4095
    path = tmp_path / name
    if name == "g.ome.tif":
        write_ome_tiff(path, gray, axes="YX", metadata={"SignificantBits": 12})
    elif name == "estimated.ome.tif":
        write_ome_tiff(path, gray, axes="YX", num_levels=1)
    elif name == "g.zarr":
        write_ome_zarr(path, gray, axes="yx", num_levels=1)
    else:
        write_dicom(path, gray, bits=16)
    slide = Slide(path, bit_depth=12 if name == "dicom" else "auto")
    expected = np.rint(gray / 4095 * 255).astype(np.uint8)
    for window in (np.s_[0:100, 0:200], np.s_[150:280, 100:420]):
        np.testing.assert_array_equal(slide[window], np.repeat(expected[window][..., None], 3, axis=2))
    slide.close()


REFUSED = {
    "three.ome.tif": (
        lambda path, image: write_ome_tiff(
            path, planes_of(image), axes="CYX", metadata={"Channel": {"Name": ["DAPI", "FITC", "Cy5"]}}
        ),
        r"holds 3 channels \(DAPI, FITC, Cy5\); save one gray or RGB picture",
    ),
    "deep.ome.tif": (
        lambda path, image: write_ome_tiff(path, planes_of(image).astype(np.uint16), axes="CYX"),
        "holds 3 channels; save one gray or RGB picture",
    ),
    "time.ome.tif": (
        lambda path, image: write_ome_tiff(path, planes_of(image), axes="TYX"),
        "holds 3 points in time",
    ),
    "a.zarr": (
        lambda path, image: write_ome_zarr(path, planes_of(image)[:2], channels=FLUORESCENCE),
        r"holds 2 channels \(DAPI, FITC\); save one gray or RGB picture",
    ),
    "float.zarr": (
        lambda path, image: write_ome_zarr(path, image[..., 0].astype(np.float32), axes="yx"),
        "has float32 pixels; 8-bit or 16-bit is needed",
    ),
    "dicom": (
        lambda path, image: write_dicom(path, image, optical_paths=("DAPI", "FITC")),
        r"holds 2 channels \(optical paths DAPI, FITC\)",
    ),
    "narrow": (
        lambda path, image: write_dicom(path, image[..., 0].astype(np.uint16), bits=12),
        "has uncompressed 12-bit pixels, which are not read",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_channels_and_kinds_of_pixels_that_are_not_read_are_named(tmp_path, image, name):
    write, message = REFUSED[name]
    write(tmp_path / name, image)
    with pytest.raises(DataError, match=message) as refused:
        Slide(tmp_path / name)
    assert "\n" not in str(refused.value)
    assert str(tmp_path / name) in str(refused.value)


def test_one_series_of_dicom_files_is_one_slide(tmp_path, image):
    write_dicom(tmp_path / "export" / "slide.1", image, num_levels=2)
    write_dicom(tmp_path / "export" / "slide.2", image, num_levels=2)
    (tmp_path / "export" / "notes").mkdir()
    assert [path.name for path in slides_in(tmp_path / "export")] == ["slide.1", "slide.2"]
    assert slides_in(tmp_path / "export" / "slide.1") == [tmp_path / "export" / "slide.1"]
    together = tmp_path / "together"
    together.mkdir()
    for name in ("slide.1", "slide.2"):
        for path in (tmp_path / "export" / name).iterdir():
            path.rename(together / f"{name}_{path.name}")
    slides = slides_in(together)
    assert [path.name for path in slides] == ["slide.1_level_0.dcm", "slide.2_level_0.dcm"]
    assert is_slide(slides[0])
    slide = Slide(slides[1])
    np.testing.assert_array_equal(slide[0:280, 0:420], image)
    slide.close()
    with pytest.raises(DataError, match=r"together: "):
        Slide(together)


def test_damaged_slides_are_one_message(tmp_path, image):
    write_ome_zarr(tmp_path / "a.zarr", planes_of(image))
    write_dicom(tmp_path / "dicom", image, num_levels=1)
    path = tmp_path / "dicom" / "level_0.dcm"
    path.write_bytes(path.read_bytes()[:-200_000])
    with pytest.raises(DataError, match=r"dicom: "):
        _ = Slide(tmp_path / "dicom")[0:280, 0:420]
    path.write_bytes(b"nonsense")
    assert pixel_size_um(tmp_path / "dicom") is None
    with pytest.raises(DataError, match=r"dicom: is damaged or no DICOM file: level_0\.dcm"):
        Slide(tmp_path / "dicom")
    chunk = next(path for path in (tmp_path / "a.zarr" / "0" / "c").rglob("*") if path.is_file())
    chunk.write_bytes(chunk.read_bytes()[:20])
    with pytest.raises(DataError, match=r"a\.zarr: is damaged and cannot be read"):
        _ = Slide(tmp_path / "a.zarr")[0:280, 0:420]
    about = tmp_path / "a.zarr" / "zarr.json"
    change_json(about, lambda content: content["attributes"]["ome"]["multiscales"][0].pop("datasets"))
    assert pixel_size_um(tmp_path / "a.zarr") is None
    with pytest.raises(DataError, match=r"a\.zarr: has damaged metadata of OME-Zarr"):
        Slide(tmp_path / "a.zarr")
    about.write_text(json.dumps({"zarr_format": 3, "node_type": "group"}))
    with pytest.raises(DataError, match=r"without a picture"):
        Slide(tmp_path / "a.zarr")
    about.write_text("{")
    with pytest.raises(DataError, match=r"a\.zarr: has damaged metadata"):
        Slide(tmp_path / "a.zarr")


def test_a_converters_folder_of_pictures_is_read_at_its_first(tmp_path, image):
    """The layout of bioformats2raw; see https://ngff.openmicroscopy.org/0.4/#bf2raw."""
    write_ome_zarr(tmp_path / "a.zarr" / "0", planes_of(image), version="0.4")
    (tmp_path / "a.zarr" / ".zattrs").write_text(json.dumps({"bioformats2raw.layout": 3}))
    (tmp_path / "a.zarr" / ".zgroup").write_text(json.dumps({"zarr_format": 2}))
    slide = Slide(tmp_path / "a.zarr")
    np.testing.assert_array_equal(slide[0:280, 0:420], image)
    slide.close()


def test_jpeg_frames_of_dicom_have_the_colors_that_opencv_decodes(tmp_path, image):
    import pydicom
    from pydicom.encaps import encapsulate
    from pydicom.uid import JPEGBaseline8Bit

    smooth = cv2.GaussianBlur(image, (0, 0), 6)
    write_dicom(tmp_path / "dicom", smooth, num_levels=1)
    data = pydicom.dcmread(tmp_path / "dicom" / "level_0.dcm")
    frames = np.frombuffer(data.PixelData, np.uint8).reshape(-1, TILE, TILE, 3)
    packed = [cv2.imencode(".jpg", frame[..., ::-1])[1].tobytes() for frame in frames]
    data.PixelData = encapsulate(packed)
    data["PixelData"].is_undefined_length = True
    data.file_meta.TransferSyntaxUID, data.PhotometricInterpretation = JPEGBaseline8Bit, "YBR_FULL_422"
    pydicom.dcmwrite(tmp_path / "dicom" / "level_0.dcm", data)
    slide = Slide(tmp_path / "dicom")
    expected = cv2.imdecode(np.frombuffer(packed[0], np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    np.testing.assert_allclose(slide[0:TILE, 0:TILE], expected, atol=2)
    slide.close()
