"""Training in two processes that communicate over loopback, as on two hosts that share a disk."""

import json
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.helpers import COMMAND, ENVIRONMENT, assert_same_run, refused, rows_of, run_process

COMPARED = ("loss", "val_loss", "dice_coef", "val_dice_coef")


def free_port():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def start(*arguments, num_devices=2, num_processes=2, more=None):
    """Starts one command in several processes, with more variables in their environment."""
    options = ("--coordinator", f"localhost:{free_port()}", "--num-processes", str(num_processes))
    flags = f"--xla_force_host_platform_device_count={num_devices}"
    environment = {**ENVIRONMENT, "XLA_FLAGS": flags, **(more or {})}
    return [
        subprocess.Popen(
            [*COMMAND, *map(str, arguments), *options, "--process-id", str(number)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(num_processes)
    ]


def end_of(processes, seconds=240):
    results = [process.communicate(timeout=seconds) for process in processes]
    return [(process.returncode, *texts) for process, texts in zip(processes, results, strict=True)]


def said(result):
    """Returns what the program printed, without the messages of Gloo.

    Gloo's threads print them in pieces and in any order.
    """
    pieces = r"\[Gloo\] Rank |is connected to |peer ranks\. |Expected number of connected peer ranks is : |\d+\n?"
    return re.sub(pieces, "", result[1]).strip()


@pytest.fixture(scope="module")
def arguments(finished):
    """Arguments of a training with three epochs of 25 steps."""
    config, _, _ = finished
    given = ["train", config, "--set", "train.epochs=3", "--set", "train.steps_per_epoch=25"]
    return [*given, "--set", f"data.root={config.parent / 'data'}"]


@pytest.fixture(scope="module")
def one_epoch(arguments, finished):
    """Arguments of a training with one epoch, whose stored weights hold a share of the initial ones."""
    initial = ("--set", f"train.init_from={finished[1]}", "--set", "train.init_share=0.3")
    return [*arguments, *initial, "--set", "train.epochs=1"]


@pytest.fixture(scope="module")
def alone(one_epoch, tmp_path_factory):
    """The run of the same training, of one epoch, in one process with one device."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    code, _, stderr = run_process(*one_epoch, "--set", "train.log_steps=20", "--run-dir", folder)
    assert code == 0, stderr
    return folder


@pytest.mark.parametrize(
    "mesh", ["{data: 2, fsdp: 2}", *(pytest.param(mesh, marks=pytest.mark.slow) for mesh in ("null", "{spatial: 4}"))]
)
def test_two_processes_learn_as_one(one_epoch, alone, tmp_path, mesh):
    """float32 and Adam let runs drift apart; the first epochs are close."""
    results = end_of(start(*one_epoch, "--set", f"runtime.mesh={mesh}", "--run-dir", tmp_path / "run"))
    assert [code for code, *_ in results] == [0, 0], results[0][2] + results[1][2]
    assert "devices: 4 x cpu (cpu) of 2 processes" in results[0][1]
    assert said(results[1]) == ""  # the second one is silent
    (row,), first = rows_of(tmp_path / "run" / "metrics.csv"), rows_of(alone / "metrics.csv")[0]
    for name in COMPARED:
        assert float(row[name]) == pytest.approx(float(first[name]), rel=2e-2), name
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == sorted(path.name for path in alone.iterdir())


@pytest.mark.slow
def test_a_signal_to_one_stops_both_and_one_process_goes_on(arguments, tmp_path):
    folder = tmp_path / "run"
    straight = end_of(start(*arguments, "--run-dir", tmp_path / "straight"))
    assert [code for code, *_ in straight] == [0, 0], straight[0][2]
    processes = start(*arguments, "--run-dir", folder)
    wait_for_steps(folder, processes)
    processes[1].send_signal(signal.SIGTERM)
    results = end_of(processes)
    assert [code for code, *_ in results] == [75, 75], results[0][2] + results[1][2]
    assert "a signal to another process: stopped at step" in results[0][2]
    again = end_of(start(*arguments, "--run-dir", folder))
    assert [code for code, *_ in again] == [0, 0], again[0][2]
    assert "resumed from step" in again[0][1]
    assert_same_run(folder, tmp_path / "straight")


def wait_for_steps(folder, processes, seconds=120):
    log, end = folder / "log.jsonl", time.monotonic() + seconds
    while not (log.exists() and "compiled" in log.read_text()):
        assert all(process.poll() is None for process in processes), end_of(processes)
        assert time.monotonic() < end
        time.sleep(0.05)
    time.sleep(0.3)


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_when_one_is_killed_the_other_ends_and_the_same_command_goes_on(arguments, tmp_path, lost):
    folder = tmp_path / "run"
    straight = end_of(start(*arguments, "--run-dir", tmp_path / "straight"))
    assert [code for code, *_ in straight] == [0, 0], straight[0][2]
    processes = start(*arguments, "--run-dir", folder, "--set", "train.save_minutes=0.001")
    wait_for_steps(folder, processes)
    processes[lost].kill()
    began = time.monotonic()
    assert [code for code, *_ in end_of(processes)][1 - lost] not in (0, 75)
    assert time.monotonic() - began < 60
    again = end_of(start(*arguments, "--run-dir", folder, "--set", "train.save_minutes=0.001"))
    assert [code for code, *_ in again] == [0, 0], again[0][2]
    assert_same_run(folder, tmp_path / "straight")


PROBE = """
import sys
from pathlib import Path

from cervseg_jax.errors import CervsegError
from cervseg_jax.runtime.distributed import initialize_distributed, require_equal, require_shared
from cervseg_jax.runtime.processes import ProcessSpec

port, index = sys.argv[1:]
try:
    initialize_distributed(ProcessSpec(f"localhost:{port}", 2, int(index)))
    require_equal("the text", f"same {index if 'text' in WHAT else ''}")
    require_shared(Path(FOLDER) / (index if 'folder' in WHAT else ''))
    print("equal")
except CervsegError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(error.exit_code)
"""


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("text", "the text differs between processes: 1 from 0; every host needs the same"),
        ("folder", "this process does not see what process 0 writes there"),
        ("", None),
    ],
)
def test_differences_between_hosts_end_all_of_them(what, message, tmp_path):
    for number in range(2):
        (tmp_path / str(number)).mkdir()
    code = f"WHAT, FOLDER = {what!r}, {str(tmp_path)!r}\n{PROBE}"
    port = free_port()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(port), str(number)],
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    for code, stdout, stderr in end_of(processes):
        if message is None:
            assert (code, said((code, stdout, stderr))) == (0, "equal"), stderr
        else:
            assert code == 2
            assert message in stderr
            assert "Traceback" not in stderr


def test_incomplete_flags_are_named(finished):
    message = refused(2, "train", finished[0], "--coordinator", "localhost:1")
    assert "--coordinator, --num-processes and --process-id belong together" in message


def test_lines_of_the_log(alone):
    lines = [json.loads(line) for line in (alone / "log.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["compiled", "steps", "epoch"]
    steps = lines[1]
    assert steps["step"] == 19 and steps["gradient_norm"] > 0 and steps["param_norm"] > 0
    assert steps["images_per_second"] == pytest.approx(4 * steps["steps_per_second"], rel=1e-2)
    assert 0 <= steps["input_wait"] <= 1
    assert steps["mfu"] is None  # the peak of a CPU is unknown
    assert steps["peak_memory_bytes"] > 1e8
    assert np.isfinite(lines[0]["step_flops"])
