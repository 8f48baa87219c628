"""`infer` in two processes that share an output folder, as on two hosts."""

import time

import numpy as np
import pytest
import tifffile

from cervseg_jax.data.decode import read_image
from tests.helpers import run_process
from tests.runtime.test_distributed import end_of, start

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def arguments(finished, tmp_path_factory):
    """A call with 14 images and a slide of four bands, without the output folder."""
    config, run, _ = finished
    slides = tmp_path_factory.mktemp("slides")
    pixels = [read_image(path) for path in sorted((config.parent / "data").glob("*/images/*.png"))]
    slide = np.tile(np.concatenate(pixels), (1, 3, 1))
    tifffile.imwrite(slides / "slide.tif", slide, bigtiff=True, tile=(64, 64), photometric="rgb")
    images = [str(config.parent / "data" / split / "images") for split in ("train", "valid", "test")]
    given = [word for place in (*images, slides) for word in ("--images", place)]
    return ["infer", run, *given, "--tiled", *THRESHOLD, "--output", "masks,nuclei,coco,probabilities", "--out"]


@pytest.fixture(scope="module")
def alone(arguments, tmp_path_factory):
    """What one process writes."""
    folder = tmp_path_factory.mktemp("alone") / "out"
    code, _, stderr = run_process(*arguments, folder, prelude=ONE_DEVICE)
    assert code == 0, stderr
    return files(folder)


THRESHOLD = ("--set", "infer.threshold=0.25")  # the network of a few steps is not sure of anything
ONE_DEVICE = "import os; os.environ['XLA_FLAGS'] = '--xla_force_host_platform_device_count=1'; "


def files(folder):
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_two_processes_write_what_one_writes(arguments, alone, tmp_path):
    results = end_of(start(*arguments, tmp_path / "out", num_devices=1))
    assert [code for code, *_ in results] == [0, 0], results[0][2] + results[1][2]
    assert files(tmp_path / "out") == alone
    for number, result in enumerate(results):
        assert f"process {number}: " in result[1]
        assert "megapixels/s; time: reading" in result[1]
    assert any("15 images done: " in result[1] for result in results)


@pytest.mark.parametrize("lost", [0, 1])
def test_the_other_process_goes_on_and_any_number_of_them_finishes(arguments, alone, tmp_path, lost):
    out = tmp_path / "out"
    processes = start(*arguments, out, num_devices=1)
    while not list(out.glob(".done/*.csv")):
        assert all(process.poll() is None for process in processes), end_of(processes)
        time.sleep(0.02)
    processes[lost].kill()
    results = end_of(processes)
    assert results[1 - lost][0] == 0, results[1 - lost][2]
    before = {path: path.stat().st_mtime_ns for path in out.glob(".done/*.csv")}
    assert len(before) >= 7
    code, _, stderr = run_process(*arguments, out, "--resume", prelude=ONE_DEVICE)
    assert code == 0, stderr
    assert files(out) == alone
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_mistake_that_one_process_meets_ends_both_in_one_line(arguments, tmp_path):
    (tmp_path / "out").write_text("a file")
    for code, _, stderr in end_of(start(*arguments, tmp_path / "out", num_devices=1)):
        assert code == 2
        assert "out is a file" in stderr
        assert "Traceback" not in stderr
