"""Calls of `infer` over folders, with a function in place of the network."""

import csv
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import tifffile

from cervseg_jax.console import Reporter
from cervseg_jax.errors import ConfigError
from cervseg_jax.files import make_folder, temporary_name
from cervseg_jax.schema import Config, DataConfig, InferConfig, ModelConfig, TiledConfig, TrainConfig
from cervseg_jax.segmentation import folder as folder_module
from cervseg_jax.segmentation.folder import InferRequest, infer_files
from cervseg_jax.segmentation.outputs import OUTPUTS
from cervseg_jax.segmentation.postprocess import Postprocessing
from cervseg_jax.segmentation.predict import Predictor
from cervseg_jax.segmentation.result import OutputStyle
from cervseg_jax.segmentation.segmenter import Segmenter
from tests.helpers import ROOT


def disc_image(radius):
    image = np.full((48, 40, 3), 220, np.uint8)
    cv2.circle(image, (20, 20), radius, (60, 40, 70), -1)
    return image


def write_slide(path, *, mpp=0.5):
    pixels = np.tile(disc_image(8), (2, 2, 1))
    with tifffile.TiffWriter(path) as tiff:
        description = f"Aperio Image Library v11\n80x96 [0,0 80x96] (32x32) RAW|AppMag = 20|MPP = {mpp}"
        tiff.write(pixels, tile=(32, 32), photometric="rgb", metadata=None, description=description)


class Infer:
    """`infer` on a folder of two images."""

    def __init__(self, tmp_path, monkeypatch):
        self.images, self.out = make_folder(tmp_path / "in"), tmp_path / "out"
        self.tiled = None
        for name in "ab":
            self.write(name, radius=8)
        monkeypatch.setattr(folder_module, "load_run_config", lambda run, overrides: self.config())
        monkeypatch.setattr(folder_module, "load_segmenter", self.load_segmenter)
        monkeypatch.setattr(folder_module, "read_contract", lambda folder: SimpleNamespace(scale=None))

    def write(self, name, *, radius):
        cv2.imwrite(str(self.images / f"{name}.png"), disc_image(radius))

    def config(self):
        return Config(
            model=ModelConfig(name="unet", image_size=(32, 32)),
            data=DataConfig(root=self.images),
            train=TrainConfig(epochs=1, batch_size=1, learning_rate=1e-3),
            infer=InferConfig(tiled=self.tiled),
        )

    def load_segmenter(self, runs, config, *, mpp):
        predictor = Predictor(
            lambda images: np.float32(images.mean(axis=-1, keepdims=True) < 128), (32, 32), 2, ("mask",)
        )
        return Segmenter(predictor, Postprocessing(), config.infer.tiled, OutputStyle(mpp))

    def call(self, *, images=None, **options):
        request = InferRequest(self.images, images or (self.images,), self.out, **options)
        counts = infer_files(request, reporter=Reporter())
        return counts.num_done, counts.num_failed

    def table(self, name="images"):
        with (self.out / f"{name}.csv").open() as file:
            return list(csv.DictReader(file))


@pytest.fixture
def infer(tmp_path, monkeypatch):
    return Infer(tmp_path, monkeypatch)


def test_changed_images_are_done_again_by_resume(infer, capsys):
    assert infer.call() == (2, 0)
    before = infer.table()
    infer.write("a", radius=4)
    assert infer.call(resume=True) == (2, 0)
    assert "1 images have changed and are done again: a" in capsys.readouterr().err
    after = infer.table()
    assert float(after[0]["foreground"]) < 0.5 * float(before[0]["foreground"])
    assert after[1] == before[1]
    assert [row["image"] for row in infer.table("nuclei")] == ["a", "b"]


def test_images_taken_away_leave_nothing_after_overwrite(infer, capsys):
    infer.call()
    (infer.out / "masks" / "mine.png").touch()
    (infer.images / "b.png").unlink()
    assert infer.call(overwrite=True) == (1, 0)
    assert "no longer given: b" in capsys.readouterr().err
    assert sorted(path.name for path in (infer.out / "masks").iterdir()) == ["a.png", "mine.png"]
    assert [row["image"] for row in infer.table()] == [row["image"] for row in infer.table("nuclei")] == ["a"]


def test_images_that_fail_are_listed_and_no_old_result_stands_for_them(infer):
    infer.call()
    for name in "ab":
        (infer.images / f"{name}.png").write_bytes(b"nonsense")
    assert infer.call(resume=True) == (0, 2)
    assert [row["file"] for row in infer.table("failed")] == [str(infer.images / f"{name}.png") for name in "ab"]
    assert infer.table() == []
    assert not (infer.out / "nuclei.csv").exists()
    assert not list((infer.out / "masks").iterdir())


def test_what_killed_calls_left_is_removed(infer):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    make_folder(infer.out / "masks")
    stale = [
        infer.out / temporary_name("work").replace(str(os.getpid()), str(dead.pid)),
        infer.out / "masks" / temporary_name().replace(str(os.getpid()), str(dead.pid)),
    ]
    make_folder(stale[0])
    (stale[0] / "maps").touch()
    stale[1].touch()
    infer.call(overwrite=True)
    assert not list(infer.out.rglob(".cervseg-*"))


def test_slides_in_a_folder_and_their_pixel_size(infer, capsys):
    write_slide(infer.images / "c.svs")
    (infer.images / "d.jp2").touch()
    assert infer.call() == (2, 0)
    assert "left out: 1 .jp2, 1 .svs (slides are read with --tiled)" in capsys.readouterr().err
    infer.tiled = TiledConfig()
    assert infer.call(overwrite=True) == (3, 0)
    stderr = capsys.readouterr().err
    assert "left out: 1 .jp2\n" in stderr
    assert "only 1 of 3 images state a pixel size" in stderr
    assert "area_um2" not in infer.table("nuclei")[0]
    slide = (infer.images / "c.svs",)
    assert infer.call(images=slide, overwrite=True) == (1, 0)
    row = infer.table("nuclei")[0]
    assert float(row["area_um2"]) == pytest.approx(float(row["area_px"]) / 4)
    infer.call(images=slide, overwrite=True, mpp=2.0)
    row = infer.table("nuclei")[0]
    assert float(row["area_um2"]) == pytest.approx(float(row["area_px"]) * 4)
    infer.call(images=slide, overwrite=True)
    with pytest.raises(ConfigError, match=r"other settings \(mpp\)"):  # the tables would mix units
        infer.call(resume=True)


def test_settings_that_cannot_work_remove_nothing(infer):
    infer.tiled = TiledConfig()
    infer.call()
    infer.tiled = TiledConfig(overlap_px=32)
    with pytest.raises(ConfigError, match="overlap_px"):
        infer.call(overwrite=True)
    assert len(infer.table()) == len(list((infer.out / "masks").iterdir())) == 2


def test_nuclei_are_listed_with_what_the_dataset_says_of_their_patient(infer, tmp_path, capsys):
    images = make_folder(tmp_path / "dataset" / "test" / "images")
    for path in list(infer.images.iterdir()):
        path.rename(images / path.name)
    infer.write("c", radius=9)
    rows = [
        "split,stem,group,fold,stain,area_px",
        'test,a,p1,0,"H&E, old",7',
        "train,b,p9,0,wrong,8",
        "test,b,p2,0,Pap,9",
    ]
    (tmp_path / "dataset" / "manifest.csv").write_text("\n".join(rows))
    assert infer.call(images=(images, infer.images)) == (3, 0)
    table = infer.table("nuclei")
    assert list(table[0])[-3:] == ["group", "stain", "image_area_px"]
    assert [(row["image"], row["group"], row["stain"], row["image_area_px"]) for row in table] == [
        ("a", "p1", "H&E, old", "7"), ("b", "p2", "Pap", "9"), ("c", "", "", ""),
    ]  # fmt: skip
    with (infer.out / "nuclei" / "a.csv").open() as file:
        measured = list(csv.DictReader(file))
    assert {name: table[0][name] for name in measured[0]} == measured[0]
    (tmp_path / "dataset" / "manifest.csv").write_text("nonsense")
    assert infer.call(images=(images,), overwrite=True) == (2, 0)
    assert "nuclei.csv does not say which patient" in capsys.readouterr().err
    assert "group" not in infer.table("nuclei")[0]


def test_detections_for_qupath_are_a_default_output_and_named_as_the_script_expects(infer):
    """The script of the documentation joins folder, image name without suffix, and this suffix."""
    infer.call()
    assert sorted(path.name for path in (infer.out / "geojson").iterdir()) == ["a.geojson", "b.geojson"]
    page = (ROOT / ".readme" / "nuclei.md").read_text()
    script = page.partition("```groovy\n")[2].partition("```")[0]
    assert len(script.splitlines()) == 4
    bare = re.sub(r"'[^']*'", "''", script)
    for opening, closing in ("()", "{}"):
        assert bare.count(opening) == bare.count(closing) > 0
    depths = list(itertools.accumulate({"(": 1, "{": 1, ")": -1, "}": -1}.get(mark, 0) for mark in bare))
    assert (min(depths), depths[-1]) == (0, 0)
    (folder, suffix) = re.findall(r"'([^']*)'", script)
    assert (Path(folder).name, suffix) == ("geojson", OUTPUTS["geojson"].suffixes[0])
    read = ("getImageList", "readImageData", "getHierarchy", "addObjects", "PathIO.readObjects", "saveImageData")
    assert all(f"{name}(" in script for name in read)
