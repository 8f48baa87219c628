"""`infer` finds the same nuclei in a picture whatever the format that it is stored in."""

import cv2
import numpy as np
import pytest

from cervseg_jax.files import write_png
from tests.helpers import draw_discs, rows_of, run
from tests.slide_files import write_dicom, write_ome_tiff, write_ome_zarr, write_pyramid

tifffile = pytest.importorskip("tifffile", reason="the extra `slides` is not installed")
pytest.importorskip("wsidicom", reason="the extra `dicom` is not installed")


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    """One picture as six slides, one of them as the middle plane of a stack, and the picture itself."""
    folder = tmp_path_factory.mktemp("slides")
    draw_discs(folder / "drawn", count=1, size=(150, 270))
    bgr = cv2.imread(str(next((folder / "drawn" / "images").iterdir())))
    image = bgr[:, :, ::-1].copy()
    planes = np.moveaxis(image, 2, 0)
    (folder / "in").mkdir()
    write_pyramid(folder / "in" / "pyramid.tif", image, mpp=0.5)
    write_ome_tiff(folder / "in" / "ome.ome.tif", image, mpp=0.5)
    write_ome_zarr(folder / "in" / "new.zarr", planes, mpp=0.5)
    write_ome_zarr(folder / "in" / "old.ome.zarr", planes, mpp=0.5, version="0.4")
    write_dicom(folder / "in" / "slide.7", image, mpp=0.5)
    write_ome_tiff(folder / "in" / "stack.ome.tif", np.stack([image // 2, image, image // 3]), axes="ZYXS", mpp=0.5)
    write_png(folder / "plain.png", image)
    return folder


def test_all_formats_give_the_same_nuclei(finished, slides, tmp_path):
    common = (finished[1], "--tiled", "--set", "infer.threshold=0.3", "--output")
    outputs = "instances,probabilities,nuclei,instance_pyramids,probability_pyramids"
    code, stdout, stderr = run("infer", *common, outputs, "--images", slides / "in", "--out", tmp_path / "found")
    assert code == 0, stderr
    assert "stack.ome.tif: is a stack; plane 2 of 3 is read" in stdout
    assert "pixel size: 0.5 micrometers, as the files state it" in stdout
    assert "left out" not in stderr
    code, _, stderr = run("infer", *common, outputs, "--images", slides / "plain.png", "--out", tmp_path / "plain")
    assert code == 0, stderr
    rows = {row["image"]: row for row in rows_of(tmp_path / "found" / "images.csv")}
    assert sorted(rows) == ["new", "old", "ome", "pyramid", "slide.7", "stack"]
    assert {name: row["plane"] for name, row in rows.items() if row["plane"]} == {"stack": "2 of 3"}
    instances = (tmp_path / "plain" / "instances" / "plain.png").read_bytes()
    assert cv2.imdecode(np.frombuffer(instances, np.uint8), -1).max() > 0
    for name in rows:
        for output in ("instances", "probabilities"):
            expected = (tmp_path / "plain" / output / "plain.png").read_bytes()
            assert (tmp_path / "found" / output / f"{name}.png").read_bytes() == expected, name
            pyramid = tmp_path / "found" / f"{output.replace('ies', 'y').rstrip('s')}_pyramids" / f"{name}.ome.tif"
            with tifffile.TiffFile(pyramid) as file:
                levels = file.series[0].levels
                np.testing.assert_array_equal(levels[0].asarray(), cv2.imdecode(np.frombuffer(expected, np.uint8), -1))
                assert 'PhysicalSizeX="0.5"' in file.ome_metadata
    assert "area_um2" in rows_of(tmp_path / "found" / "nuclei.csv")[0]


def test_slides_in_folders_need_tiles_and_changed_ones_are_done_again(finished, slides, tmp_path):
    arguments = ("infer", finished[1], "--images", slides / "in", "--out", tmp_path / "found", "--output", "masks")
    code, _, stderr = run(*arguments, "--whole")
    assert code == 1
    assert "(slides are read with --tiled)" in stderr
    code, _, stderr = run(*arguments, "--tiled", "--overwrite")
    assert code == 0, stderr
    times = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "found" / "masks").iterdir()}
    chunk = next(path for path in (slides / "in" / "new.zarr" / "1").rglob("*") if path.is_file())
    chunk.touch()
    code, _, stderr = run(*arguments, "--tiled", "--resume")
    assert code == 0, stderr
    assert "1 images have changed and are done again: new" in stderr
    now = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "found" / "masks").iterdir()}
    assert [name for name in times if now[name] != times[name]] == ["new.png"]
