"""Which results of earlier calls are kept, done again and removed."""

import json
import os

import pytest

from cervseg_jax.console import Reporter
from cervseg_jax.errors import ConfigError
from cervseg_jax.segmentation.jobs import plan_jobs
from cervseg_jax.segmentation.ledger import Ledger
from cervseg_jax.segmentation.notes import file_stamp
from cervseg_jax.segmentation.outputs import IMAGE_COLUMNS

SETTINGS = {"weights": ["a"], "infer": {"colors": ("black", "white")}}


class Folder:
    """Three images, and calls of `infer` that write empty files for them."""

    def __init__(self, tmp_path):
        self.images, self.out = tmp_path / "in", tmp_path / "out"
        self.images.mkdir()
        for name in "abc":
            (self.images / f"{name}.png").write_bytes(name.encode())

    def begin(self, *, outputs=("masks", "rois"), settings=SETTINGS, overwrite=False, resume=False):
        jobs = plan_jobs([self.images])
        ledger = Ledger(self.out, outputs)
        todo = ledger.begin(jobs, settings, overwrite=overwrite, resume=resume, reporter=Reporter(quiet=True))
        return ledger, todo

    def call(self, *, outputs=("masks", "rois"), **options):
        """Returns the names of the images that were done by this call."""
        ledger, todo = self.begin(outputs=outputs, **options)
        for job in todo:
            ledger.start(job.name)
            for output in outputs:
                (self.out / output / f"{job.name}{'.png' if output == 'masks' else '.zip'}").write_bytes(b"x")
            row = [job.name, str(job.path), *["1"] * (len(IMAGE_COLUMNS) - 2)]
            ledger.complete(job.name, row, file_stamp(job.path))
        return [job.name for job in todo]

    def files(self):
        """Returns the files of the outputs, without the notes."""
        paths = (path for path in self.out.rglob("*") if path.is_file() and ".done" not in path.parts)
        return sorted(str(path.relative_to(self.out)) for path in paths)


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


def test_a_finished_call_leaves_one_row_per_image(folder):
    assert folder.call() == ["a", "b", "c"]
    names = sorted(path.name for path in (folder.out / ".done").iterdir())
    assert names == ["a.csv", "b.csv", "c.csv", "made_with.json", "plan.json"]
    ledger, todo = folder.begin(resume=True)
    assert todo == []
    assert ledger.read_row("a") == ["a", str(folder.images / "a.png"), *["1"] * (len(IMAGE_COLUMNS) - 2)]
    assert ledger.read_row("d") is None


def test_changed_images_are_done_again(folder, capsys):
    folder.call()
    status = (folder.images / "a.png").stat()
    (folder.images / "a.png").write_bytes(b"A")  # of the same size
    os.utime(folder.images / "a.png", ns=(0, status.st_mtime_ns + 1))
    (folder.out / "images.csv").touch()
    (folder.images / "b.png").write_bytes(b"longer")
    ledger, todo = folder.begin(resume=True)
    assert [job.name for job in todo] == ["a", "b"]
    assert folder.files() == ["masks/c.png", "rois/c.zip"], "old results must not stand as new if the image fails now"
    assert ledger.read_row("a") is None
    assert "2 images have changed and are done again: a, b" in capsys.readouterr().err


def test_a_file_of_the_same_name_elsewhere_is_another_image(folder, tmp_path):
    folder.call()
    os.rename(folder.images, tmp_path / "elsewhere")
    folder.images = tmp_path / "elsewhere"
    assert folder.call(resume=True) == ["a", "b", "c"]


def test_missing_files_are_written_again(folder):
    folder.call()
    (folder.out / "masks" / "b.png").unlink()
    (folder.out / "rois" / "c.zip").unlink()  # images without nuclei have none
    (folder.out / "masks" / "a.png").write_bytes(b"")
    assert folder.call(resume=True) == ["a", "b"]


@pytest.mark.parametrize("text", ["", "a,b\n", '"'])
def test_damaged_rows_and_those_without_size_and_time_are_done_again(folder, text):
    folder.call()
    (folder.out / ".done" / "a.csv").write_text(text)
    row = (folder.out / ".done" / "b.csv").read_text().strip().split(",")
    (folder.out / ".done" / "b.csv").write_text(",".join(row[:-2]) + "\n")
    assert folder.call(resume=True) == ["a", "b"]


def test_resuming_with_fewer_images_keeps_and_names_the_others(folder, capsys):
    folder.call()
    (folder.images / "b.png").unlink()
    assert folder.call(resume=True) == []
    assert "holds results of 1 images that are not among --images" in capsys.readouterr().err
    assert "masks/b.png" in folder.files()


def test_other_settings_cannot_be_resumed(folder):
    folder.call()
    with pytest.raises(ConfigError, match=r"other settings \(weights\)"):
        folder.call(resume=True, settings={**SETTINGS, "weights": ["b"]})
    (folder.out / ".done" / "made_with.json").write_text("[1")
    with pytest.raises(ConfigError, match="damaged"):
        folder.call(resume=True)
    assert folder.call(overwrite=True) == ["a", "b", "c"]


def test_overwriting_removes_what_earlier_calls_wrote_and_nothing_else(folder, capsys):
    folder.call()
    for name in ("images.csv", "failed.csv", "nuclei.csv", "masks/mine.png", "rois/b.txt", "notes.txt"):
        (folder.out / name).touch()
    (folder.out / "overlays").mkdir()
    (folder.out / "overlays" / "b.png").touch()  # not an output of that call
    (folder.images / "b.png").unlink()
    ledger, todo = folder.begin(outputs=("masks",), overwrite=True)
    assert [job.name for job in todo] == ["a", "c"]
    assert folder.files() == ["masks/mine.png", "notes.txt", "nuclei.csv", "overlays/b.png", "rois/b.txt"]
    assert ledger.read_row("a") is None
    assert "removed the results of 1 images that are no longer given: b" in capsys.readouterr().err


def test_overwriting_knows_images_that_a_killed_call_had_begun(folder):
    ledger, todo = folder.begin()
    ledger.start(todo[1].name)
    (folder.out / "masks" / "b.png").touch()
    (folder.images / "b.png").unlink()
    folder.call(overwrite=True)
    assert folder.files() == ["masks/a.png", "masks/c.png", "rois/a.zip", "rois/c.zip"]


def test_outputs_of_several_calls_are_known(folder):
    folder.call(outputs=("masks",))
    folder.call(outputs=("rois",))
    note = json.loads((folder.out / ".done" / "made_with.json").read_text())
    assert note["owned_outputs"] == ["masks", "rois"]
    (folder.images / "b.png").unlink()
    folder.call(outputs=("rois",), overwrite=True)
    assert folder.files() == ["rois/a.zip", "rois/c.zip"]


def test_results_of_release_0_1_are_replaced(folder):
    folder.call()
    (folder.out / "colour").mkdir()
    (folder.out / "colour" / "a.png").touch()
    (folder.out / ".done" / "made_with.json").write_text('{"outputs": ["colour", "masks", "rois"]}')
    with pytest.raises(ConfigError, match=r"other settings \(weights, infer\)"):
        folder.call(resume=True)
    folder.begin(overwrite=True)
    assert folder.files() == []


@pytest.mark.parametrize("owned", ["7", "null", "[[1], {}]"])
def test_notes_that_make_no_sense_remove_nothing(folder, owned):
    folder.call()
    (folder.out / ".done" / "made_with.json").write_text(f'{{"owned_outputs": {owned}}}')
    folder.begin(outputs=("masks",), overwrite=True)
    assert len(folder.files()) == 6


def test_results_that_are_the_images_of_this_call_are_kept(folder):
    folder.call(outputs=("masks",))
    folder.images = folder.out / "masks"
    folder.call(outputs=("rois",), overwrite=True)
    assert folder.files() == ["masks/a.png", "masks/b.png", "masks/c.png", "rois/a.zip", "rois/b.zip", "rois/c.zip"]


def test_files_that_were_there_before_an_output_was_first_written_are_kept(folder):
    folder.call(outputs=("rois",))
    (folder.out / "masks").mkdir()
    (folder.out / "masks" / "b.png").touch()
    (folder.images / "b.png").unlink()
    folder.begin(outputs=("masks",), overwrite=True)
    assert folder.files() == ["masks/b.png"]


def test_a_folder_that_cannot_be_written_is_one_message(folder, monkeypatch):
    def fail(path, data):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("pathlib.Path.write_bytes", fail)
    with pytest.raises(ConfigError, match=r"masks cannot be written: Read-only file system"):
        folder.begin()
