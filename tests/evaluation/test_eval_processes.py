"""`eval` and the tuning of post-processing in two processes that share a run folder, as on two hosts."""

import re
import shutil
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest

from tests.helpers import ENVIRONMENT, ROOT, draw_discs, run_process
from tests.runtime.test_distributed import end_of, free_port, said, start

pytestmark = pytest.mark.slow
ONE_DEVICE = "import os; os.environ['XLA_FLAGS'] = '--xla_force_host_platform_device_count=1'; "


def files(folder):
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_two_processes_write_what_one_writes(finished, tmp_path):
    shutil.copytree(finished[1], tmp_path / "run")
    arguments = ("eval", tmp_path / "run", "--set", f"data.root={finished[0].parent / 'data'}")
    code, alone, stderr = run_process(*arguments, prelude=ONE_DEVICE)
    assert code == 0, stderr
    expected = files(tmp_path / "run" / "eval")
    shutil.rmtree(tmp_path / "run" / "eval")
    results = end_of(start(*arguments, num_devices=1))
    assert [code for code, *_ in results] == [0, 0], results
    assert files(tmp_path / "run" / "eval") == expected
    assert "dice" in results[0][1]
    assert said(results[1]) == ""


def test_the_loss_of_a_process_costs_only_its_current_images(finished, tmp_path):
    shutil.copytree(finished[1], tmp_path / "run")
    draw_discs(tmp_path / "data" / "test", count=60, seed=9)
    arguments = ("eval", tmp_path / "run", "--data", tmp_path / "data")
    code, _, stderr = run_process(*arguments, prelude=ONE_DEVICE)
    assert code == 0, stderr
    folder = tmp_path / "run" / "eval" / "data-test"
    expected = files(folder)
    shutil.rmtree(folder)
    processes = start(*arguments, num_devices=1)
    while not list(folder.glob("unfinished/*.npz")):
        assert processes[1].poll() is None
        time.sleep(0.01)
    processes[1].kill()
    end_of(processes)
    kept = len(list(folder.glob("unfinished/*.npz")))
    assert 0 < kept < 60
    code, stdout, stderr = run_process(*arguments, prelude=ONE_DEVICE)
    assert code == 0, stderr
    assert f"{kept} of 60 images are scored" in stdout + stderr
    assert files(folder) == expected


def test_damage_that_one_process_meets_ends_both_in_one_line(finished, tmp_path):
    shutil.copytree(finished[1], tmp_path / "run")
    draw_discs(tmp_path / "data" / "test", count=4, seed=9)
    sorted((tmp_path / "data" / "test" / "images").iterdir())[1].write_bytes(b"nonsense")
    arguments = ("eval", tmp_path / "run", "--data", tmp_path / "data")
    for code, _, stderr in end_of(start(*arguments, num_devices=1)):
        assert code == 3
        assert "1 of 4 pairs cannot be used" in stderr
        assert "Traceback" not in stderr


TUNE = """
import sys
from pathlib import Path
from cervseg_jax.runtime.distributed import initialize_distributed
from cervseg_jax.runtime.processes import ProcessSpec
run, root, port, count, number = Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:])
if count > 1:
    initialize_distributed(ProcessSpec(f"localhost:{port}", count, number))
from cervseg_jax.data.pairs import find_pairs
from cervseg_jax.runs.folder import load_run_config
from cervseg_jax.segmentation.segmenter import load_segmenter
from cervseg_jax.segmentation.tuning import tune_segmenter
config = load_run_config(run, (f"data.root={root}",))
pairs = find_pairs(config.data)[0]["valid"]
print("tuned:", tune_segmenter(load_segmenter([run], config), pairs, thresholds=(0.2, 0.3), is_shared=count > 1))
"""


def test_two_processes_tune_as_one(finished, tmp_path):
    data = shutil.copytree(finished[0].parent / "data", tmp_path / "data")
    (data / "valid" / "instances").mkdir()
    for path in (data / "valid" / "masks").iterdir():
        labels = cv2.connectedComponents(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))[1]
        cv2.imwrite(str(data / "valid" / "instances" / path.name), labels.astype(np.uint16))
    environment = {**ENVIRONMENT, "XLA_FLAGS": "--xla_force_host_platform_device_count=1", "PYTHONPATH": str(ROOT)}

    def tuned(count):
        port = str(free_port())
        words = [sys.executable, "-c", TUNE, str(finished[1]), str(data), port, str(count)]
        options = {"env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        results = end_of([subprocess.Popen([*words, str(number)], **options) for number in range(count)])
        return [re.search("tuned: .*", stdout)[0] for _, stdout, _ in results]

    assert tuned(2) == tuned(1) * 2
