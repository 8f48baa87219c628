"""Images that fail alone, and errors that end the whole call."""

import dataclasses
import errno
import os
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest

from cervseg_jax.console import Reporter
from cervseg_jax.errors import ConfigError, DataError
from cervseg_jax.files import make_folder
from cervseg_jax.schema import TiledConfig
from cervseg_jax.segmentation import outputs as output_module
from cervseg_jax.segmentation import pipeline as pipeline_module
from cervseg_jax.segmentation.images import open_image
from cervseg_jax.segmentation.jobs import plan_jobs
from cervseg_jax.segmentation.ledger import Ledger
from cervseg_jax.segmentation.outputs import OUTPUTS
from cervseg_jax.segmentation.pipeline import Pipeline
from cervseg_jax.segmentation.postprocess import Postprocessing
from cervseg_jax.segmentation.predict import Predictor
from cervseg_jax.segmentation.segmenter import Segmenter
from cervseg_jax.segmentation.shares import Share

CALLS_PER_IMAGE = 2
"""Batches of two tiles of 32x32 pixels of an image of 48x40, in tiles."""


def darkness(images):
    """Stands for a network: dark pixels are nuclei."""
    return np.float32(images.mean(axis=-1, keepdims=True) < 128)


class Stop:
    signal_name = "SIGTERM"

    def __call__(self):
        return False


class Call:
    """One call over four images of 48x40 pixels."""

    def __init__(self, tmp_path, *, tiled=None, outputs=("masks", "nuclei")):
        self.out, self.outputs = tmp_path / "out", outputs
        images = make_folder(tmp_path / "in")
        for name in "abcd":
            image = np.full((48, 40, 3), 220, np.uint8)
            cv2.circle(image, (20, 20), 8, (60, 40, 70), -1)
            cv2.imwrite(str(images / f"{name}.png"), image)
        self.segmenter = Segmenter(Predictor(darkness, (32, 32), 2, ("mask",)), Postprocessing(), tiled)
        self.jobs = plan_jobs([images])
        self.num_advances = 0

    def advance(self, note=""):
        self.num_advances += 1

    def run(self, share=None, **options):
        """Returns the reason of each failed image by name."""
        self.ledger = Ledger(self.out, self.outputs)
        reporter = Reporter(quiet=True)
        todo = self.ledger.begin(self.jobs, {}, **{"overwrite": False, "resume": False} | options, reporter=reporter)
        pipeline = Pipeline(
            self.segmenter,
            self.ledger,
            out=self.out,
            outputs=self.outputs,
            pixel_sizes={self.jobs[0]: 0.5},
            num_threads=2,
            reporter=reporter,
            advance=self.advance,
            stop=Stop(),
        )
        return {job.name: reason for job, reason in pipeline.process(share or Share(todo, []))}

    def done(self):
        return [job.name for job in self.jobs if self.ledger.read_row(job.name) is not None]

    def files(self, output):
        return sorted(path.stem for path in (self.out / output).iterdir())


def failing_writer(monkeypatch, output, error, *, for_names="b"):
    def write(folder, result):
        if result.name in for_names:
            raise error
        OUTPUTS[output].write(folder, result)

    monkeypatch.setattr(output_module, "OUTPUTS", {**OUTPUTS, output: OUTPUTS[output]._replace(write=write)})


@pytest.mark.parametrize("tiled", [None, TiledConfig()])
def test_all_images_are_written_with_their_own_pixel_size(tmp_path, tiled):
    call = Call(tmp_path, tiled=tiled)
    assert call.run() == {}
    assert call.done() == call.files("masks") == call.files("nuclei") == ["a", "b", "c", "d"]
    assert call.num_advances == 4
    header = {name: (call.out / "nuclei" / f"{name}.csv").read_text().partition("\n")[0] for name in "ab"}
    assert "area_um2" in header["a"]
    assert "area_um2" not in header["b"]


class DamagedSlide:
    """A slide with a tile that cannot be decoded."""

    shape = (48, 40, 3)

    def __init__(self, path):
        self.path = path

    def __getitem__(self, window):
        raise DataError(f"{self.path}: is damaged and cannot be read at row 0, column 0")

    def close(self):
        pass


def test_a_damaged_tile_fails_its_slide(tmp_path, monkeypatch):
    call = Call(tmp_path, tiled=TiledConfig())
    whole = pipeline_module.open_image
    monkeypatch.setattr(
        pipeline_module,
        "open_image",
        lambda path, **options: DamagedSlide(path) if path.stem == "c" else whole(path, **options),
    )
    failed = call.run()
    assert failed == {"c": f"{call.jobs[2].path}: is damaged and cannot be read at row 0, column 0"}
    assert call.done() == call.files("masks") == ["a", "b", "d"]
    assert call.num_advances == 4


def test_a_reader_that_breaks_fails_its_image(tmp_path, monkeypatch):
    call = Call(tmp_path)

    def read(path, **options):
        raise {"a": MemoryError(), "b": ValueError("bad value"), "c": ConfigError("needs an extra")}[path.stem]

    call.jobs = call.jobs[:3]
    monkeypatch.setattr(pipeline_module, "open_image", read)
    assert {name: reason.partition("png: ")[2] for name, reason in call.run().items()} == {
        "a": "too little memory for this image",
        "b": "ValueError: bad value",
        "c": "needs an extra",
    }
    assert call.done() == []


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), ValueError("cannot be stored")])
def test_an_output_that_cannot_be_written_fails_its_image_without_leaving_half_of_it(tmp_path, monkeypatch, error):
    call = Call(tmp_path)
    failing_writer(monkeypatch, "nuclei", error)
    failed = call.run()
    assert list(failed) == ["b"]
    assert failed["b"].startswith(f"{call.jobs[1].path}: ")
    assert str(error.args[-1]) in failed["b"]
    assert call.done() == call.files("masks") == call.files("nuclei") == ["a", "c", "d"]
    monkeypatch.undo()
    assert call.run(resume=True) == {}
    assert call.done() == call.files("masks") == ["a", "b", "c", "d"]


def test_a_folder_in_place_of_a_file_fails_that_image(tmp_path):
    call = Call(tmp_path)
    make_folder(call.out / "masks" / "b.png")
    assert list(call.run()) == ["b"]
    assert call.done() == ["a", "c", "d"]


def test_names_too_long_for_a_suffix_fail_their_image_and_245_bytes_are_fine(tmp_path):
    call = Call(tmp_path, outputs=tuple(OUTPUTS))
    folder = call.jobs[0].path.parent
    call.jobs[0].path.rename(folder / f"{'x' * 241}.png")
    call.jobs[1].path.rename(folder / f"{'y' * 251}.png")
    call.jobs = plan_jobs([folder])
    failed = call.run()
    assert list(failed) == ["y" * 251]
    assert "File name too long" in failed["y" * 251]
    assert call.done() == ["c", "d", "x" * 241]
    assert not list(call.out.rglob(".cervseg-*"))


def test_a_full_disk_ends_the_call_in_one_line(tmp_path, monkeypatch):
    call = Call(tmp_path)
    failing_writer(monkeypatch, "nuclei", OSError(errno.ENOSPC, "No space left on device"), for_names="cd")
    with pytest.raises(ConfigError, match=r"No space left on device; finished images are kept.*--resume"):
        call.run()
    assert call.done() == ["a", "b"]


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="space is reserved where the system can")
def test_a_disk_without_space_for_the_maps_of_a_slide_ends_the_call_in_one_line(tmp_path, monkeypatch):
    """Writing to a mapped file on a full disk would kill the process."""

    def reserve(file, offset, num_bytes):
        assert num_bytes == 48 * 40 * 2
        raise OSError(errno.ENOSPC, "No space left on device")

    call = Call(tmp_path, tiled=TiledConfig())
    monkeypatch.setattr("cervseg_jax.segmentation.maps.MAX_ELEMENTS_IN_MEMORY", 1)
    monkeypatch.setattr(os, "posix_fallocate", reserve)
    with pytest.raises(ConfigError, match="No space left on device; finished images are kept"):
        call.run()


def test_a_folder_that_became_unwritable_ends_the_call(tmp_path, monkeypatch):
    call = Call(tmp_path)
    failing_writer(monkeypatch, "nuclei", PermissionError(errno.EACCES, "Permission denied"), for_names="bcd")
    checks = []

    def require_writable(folder: Path):
        checks.append(folder.name)
        if folder.name == "nuclei":
            raise ConfigError(f"--out: {folder} cannot be written: Permission denied")

    monkeypatch.setattr(pipeline_module, "require_writable", require_writable)
    with pytest.raises(ConfigError, match=r"nuclei cannot be written: Permission denied"):
        call.run()
    assert checks == ["masks", "nuclei"]


def test_narrow_values_are_named_once(tmp_path, capsys):
    call = Call(tmp_path)
    for job in call.jobs[:2]:
        cv2.imwrite(str(job.path), np.full((48, 40), 4000, np.uint16))
    call.run()
    assert "2 16-bit images have values up to 12 bits only" in capsys.readouterr().err


def test_slides_that_several_processes_predict_are_as_those_of_one(tmp_path, monkeypatch):
    monkeypatch.setattr("cervseg_jax.segmentation.bands.BAND_TILE_ROWS", 1)
    alone = Call(tmp_path / "alone", tiled=TiledConfig(), outputs=("masks", "probabilities"))
    assert alone.run() == {}
    call = Call(tmp_path / "shared", tiled=TiledConfig(), outputs=("masks", "probabilities"))
    first, second = (
        Share(call.jobs[process::2], call.jobs[:2], process=process, num_processes=2) for process in (0, 1)
    )
    assert call.run(share=first) == {}
    assert call.done() == ["a", "c"]
    assert (call.out / ".done" / "b.bands").is_dir(), "a part of the slide that the other process writes"
    assert call.run(share=second, resume=True) == {}
    assert call.done() == ["a", "b", "c", "d"]
    assert not list(call.out.rglob("*.bands"))
    for output in ("masks", "probabilities"):
        for name in "abcd":
            expected, found = ((each.out / output / f"{name}.png").read_bytes() for each in (alone, call))
            assert found == expected


def test_a_part_of_a_slide_that_cannot_be_read_is_left_to_the_process_that_writes_it(tmp_path, monkeypatch):
    call = Call(tmp_path, tiled=TiledConfig())
    damaged = DamagedSlide(call.jobs[0].path)
    monkeypatch.setattr(
        pipeline_module,
        "open_image",
        lambda path, **options: damaged if path == call.jobs[0].path else open_image(path, **options),
    )
    assert call.run(share=Share(call.jobs[1:2], call.jobs[:1], process=1, num_processes=2)) == {}
    assert call.done() == ["b"]
    failed = call.run(share=Share(call.jobs[:1], call.jobs[:1], process=0, num_processes=2), resume=True)
    assert list(failed) == ["a"]
    assert call.ledger.read_failure("a") == [str(call.jobs[0].path), failed["a"]]


@pytest.mark.parametrize("has_room", [True, False])
def test_large_images_are_written_one_at_a_time_while_the_next_one_is_predicted(tmp_path, monkeypatch, has_room):
    monkeypatch.setattr(pipeline_module, "MAX_PENDING_ELEMENTS", 1)
    monkeypatch.setattr(pipeline_module, "SCRATCH_BYTES_PER_PIXEL", 0 if has_room else 2**60)
    call = Call(tmp_path, tiled=TiledConfig())
    writing, most, is_predicted = [], [], threading.Condition()
    num_predicted = 0

    def predict(images):
        nonlocal num_predicted
        assert has_room or not writing
        with is_predicted:
            num_predicted += 1
            is_predicted.notify_all()
        return darkness(images)

    def write(folder, result):
        writing.append(result.name)
        most.append(len(writing))
        if has_room and result.name != "d":  # ends only if the next image is predicted meanwhile
            place = "abcd".index(result.name)
            with is_predicted:
                assert is_predicted.wait_for(lambda: num_predicted > CALLS_PER_IMAGE * (place + 1), timeout=30)
        OUTPUTS["nuclei"].write(folder, result)
        writing.remove(result.name)

    monkeypatch.setattr(output_module, "OUTPUTS", {**OUTPUTS, "nuclei": OUTPUTS["nuclei"]._replace(write=write)})
    call.segmenter = dataclasses.replace(call.segmenter, predictor=Predictor(predict, (32, 32), 2, ("mask",)))
    assert call.run() == {}
    assert call.done() == ["a", "b", "c", "d"]
    assert most == [1, 1, 1, 1]
    assert num_predicted == 4 * CALLS_PER_IMAGE
