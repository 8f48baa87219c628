"""Input images and the names of their results."""

import numpy as np
import pytest
import tifffile

from cervseg_jax.console import Reporter
from cervseg_jax.errors import ConfigError
from cervseg_jax.segmentation.jobs import Job, plan_jobs, require_safe_output, stated_pixel_sizes


def test_files_that_share_a_stem_get_names_of_their_own(tmp_path):
    for name in ("a.png", "a.jpg", "b.png", "a_png.png"):
        (tmp_path / name).touch()
    jobs = plan_jobs([tmp_path, tmp_path / "b.png"])
    assert [job.name for job in jobs] == ["a_jpg", "a_png_2", "a_png", "b"]
    assert {job.path.name for job in jobs} == {"a.jpg", "a.png", "a_png.png", "b.png"}


def test_a_file_that_is_given_in_several_ways_is_one_image(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "a.png").touch()
    (tmp_path / "s" / "link.png").symlink_to("a.png")  # of another name: another image
    (tmp_path / "t").symlink_to("s")
    jobs = plan_jobs([tmp_path / "s" / "a.png", tmp_path / "s", tmp_path / "s" / ".." / "s", tmp_path / "t"])
    assert [job.name for job in jobs] == ["a", "link"]
    assert jobs[0].path == tmp_path / "s" / "a.png"


def test_slides_of_a_folder_need_tiles_and_other_files_are_named(tmp_path):
    for name in ("a.png", "b.svs", "c.NDPI", "d.jp2", ".hidden.png"):
        (tmp_path / name).touch()
    messages = []
    jobs = plan_jobs([tmp_path], with_slides=True, on_left_out=messages.append)
    assert [job.path.name for job in jobs] == ["a.png", "b.svs", "c.NDPI"]
    assert messages == [f"{tmp_path}: left out: 1 .jp2"]
    messages.clear()
    assert [job.path.name for job in plan_jobs([tmp_path], on_left_out=messages.append)] == ["a.png"]
    assert messages == [f"{tmp_path}: left out: 1 .jp2, 1 .ndpi, 1 .svs (slides are read with --tiled)"]
    messages.clear()
    for name in ("sub", "__MACOSX", ".hidden"):
        (tmp_path / name).mkdir()
    plan_jobs([tmp_path], with_slides=True, on_left_out=messages.append)
    assert messages == [f"{tmp_path}: left out: 1 .jp2, its folders (sub)"]
    (tmp_path / "a.png").unlink()
    with pytest.raises(ConfigError, match=r"holds no images; left out: .*--tiled"):
        plan_jobs([tmp_path])


def test_dicom_files_that_cannot_be_read_are_named(tmp_path, monkeypatch):
    for name in ("a.png", "b.dcm"):
        (tmp_path / name).write_bytes(b"nothing")
    messages = []
    jobs = plan_jobs([tmp_path], with_slides=True, on_left_out=messages.append)
    assert [job.name for job in jobs] == ["a"]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    plan_jobs([tmp_path], with_slides=True, on_left_out=messages.append)
    assert messages[-1].startswith(f"{tmp_path}: left out: 1 .dcm (DICOM slides need an extra: pip install ")


def test_slides_that_are_folders_are_images(tmp_path):
    (tmp_path / "a.ome.zarr").mkdir()
    (tmp_path / "a.ome.zarr" / ".zattrs").write_text("{}")
    (tmp_path / "a.ome.zarr" / "0").mkdir()
    (tmp_path / "b.ome.tif").touch()
    jobs = plan_jobs([tmp_path], with_slides=True)
    assert [(job.path.name, job.name) for job in jobs] == [("a.ome.zarr", "a"), ("b.ome.tif", "b")]
    assert plan_jobs([tmp_path / "a.ome.zarr"]) == [Job(tmp_path / "a.ome.zarr", "a")]
    messages = []
    plan_jobs([tmp_path], on_left_out=messages.append)
    assert messages == [f"{tmp_path}: left out: its folders (a.ome.zarr) (slides are read with --tiled)"]
    with pytest.raises(ConfigError, match="is a folder of input images"):
        require_safe_output(tmp_path / "a.ome.zarr", ["masks"], jobs, overwrite=True)


def test_missing_inputs_and_folders_of_inputs_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        plan_jobs([tmp_path / "missing"])
    job = Job(tmp_path / "masks" / "a.png", "a")
    (tmp_path / "out" / "masks").mkdir(parents=True)
    (tmp_path / "out" / "masks" / "a.png").touch()
    require_safe_output(tmp_path / "out", ["masks"], [job], overwrite=True)
    with pytest.raises(ConfigError, match=r"holds results already.*--overwrite.*--resume"):
        require_safe_output(tmp_path / "out", ["masks"], [job], overwrite=False)
    with pytest.raises(ConfigError, match="is a folder of input images"):
        require_safe_output(tmp_path, ["masks"], [job], overwrite=True)


def test_stated_pixel_sizes_are_used_if_all_files_state_one(tmp_path, capsys):
    pixels = np.zeros((8, 8, 3), np.uint8)
    for name, size in (("a.tif", 0.5), ("b.tif", 0.25)):
        resolution = (1e4 / size, 1e4 / size)
        tifffile.imwrite(tmp_path / name, pixels, resolution=resolution, resolutionunit="CENTIMETER")
    jobs = plan_jobs([tmp_path])
    assert stated_pixel_sizes(jobs, Reporter()) == {jobs[0]: pytest.approx(0.5), jobs[1]: pytest.approx(0.25)}
    assert "pixel size: 0.25 to 0.5 micrometers" in capsys.readouterr().out
    (tmp_path / "c.png").touch()
    assert stated_pixel_sizes(plan_jobs([tmp_path]), Reporter()) == {}
    assert "only 2 of 3 images state a pixel size" in capsys.readouterr().err
    assert stated_pixel_sizes(plan_jobs([tmp_path / "c.png"]), Reporter()) == {}
