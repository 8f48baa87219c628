"""`eval` and the tuning of post-processing in two processes that share a run folder, as on two hosts."""

import shutil

import pytest

from tests.helpers import draw_discs, run_process
from tests.runtime.test_distributed import end_of, said, start

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


def test_damage_that_one_process_meets_ends_both_in_one_line(finished, tmp_path):
    shutil.copytree(finished[1], tmp_path / "run")
    draw_discs(tmp_path / "data" / "test", count=4, seed=9)
    (tmp_path / "data" / "train").mkdir()
    sorted((tmp_path / "data" / "test" / "images").iterdir())[1].write_bytes(b"nonsense")
    arguments = ("eval", tmp_path / "run", "--data", tmp_path / "data")
    for code, _, stderr in end_of(start(*arguments, num_devices=1)):
        assert code == 3
        assert "1 of 4 pairs cannot be used" in stderr
        assert "Traceback" not in stderr
