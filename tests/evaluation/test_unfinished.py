"""An evaluation that was cut off goes on where it stopped, and writes what an unbroken one writes."""

import shutil

import cv2
import numpy as np
import pytest

from cervseg_jax.errors import CervsegError
from cervseg_jax.evaluation import images
from tests.helpers import run


def files(folder):
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.fixture
def evaluation(finished, tmp_path):
    """The arguments of an evaluation with nuclei, the folder of its results, and these results."""
    data = shutil.copytree(finished[0].parent / "data", tmp_path / "data")
    (data / "test" / "instances").mkdir()
    for path in sorted((data / "test" / "masks").iterdir())[:4]:
        labels = cv2.connectedComponents(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))[1]
        cv2.imwrite(str(data / "test" / "instances" / path.name), labels.astype(np.uint16))
    shutil.copytree(finished[1], tmp_path / "run", ignore=shutil.ignore_patterns("eval"))
    arguments, folder = ("eval", tmp_path / "run", "--data", data), tmp_path / "run" / "eval" / "data-test"
    code, _, stderr = run(*arguments)
    assert code == 0, stderr
    expected = files(folder)
    assert not (folder / "unfinished").exists()
    shutil.rmtree(folder)
    return arguments, folder, expected


def cut_off(monkeypatch, arguments, *, after):
    """Runs an evaluation that fails when it writes the prediction of a further image."""
    write, written = images._write_prediction, []

    def fail(*args, **options):
        if len(written) == after:
            raise CervsegError("cut off")
        written.append(write(*args, **options))

    with monkeypatch.context() as patched:
        patched.setattr(images, "_write_prediction", fail)
        assert "cut off" in run(*arguments)[2]


def test_it_goes_on(evaluation, monkeypatch):
    arguments, folder, expected = evaluation
    cut_off(monkeypatch, arguments, after=3)
    assert len(list((folder / "unfinished").iterdir())) == 3
    cut_off(monkeypatch, arguments, after=1)
    code, stdout, stderr = run(*arguments)
    assert code == 0, stderr
    assert "4 of 5 images are scored" in stdout + stderr
    assert files(folder) == expected


def test_other_settings_and_damage_start_again(evaluation, monkeypatch):
    arguments, folder, expected = evaluation
    cut_off(monkeypatch, arguments, after=3)
    code, stdout, stderr = run(*arguments, "--set", "infer.threshold=0.9")
    assert code == 0 and "cut off" not in stdout + stderr
    cut_off(monkeypatch, arguments, after=3)
    first, second, _ = sorted((folder / "unfinished").iterdir())
    first.write_bytes(b"")
    second.write_bytes(second.read_bytes()[:100])
    code, stdout, stderr = run(*arguments)
    assert code == 0 and "1 of 5 images are scored" in stdout + stderr
    assert files(folder) == expected
