"""What several test modules use: running commands, comparing runs, small datasets."""

import contextlib
import csv
import io
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np

SHARED = Path(__file__).resolve().parents[2] / "shared"
ROOT = Path(__file__).resolve().parents[1]

ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "KERAS_BACKEND")}
COMMAND = [
    sys.executable,
    "-W",
    "error::DeprecationWarning:cervseg_jax",
    "-c",
    "from cervseg_jax.cli import main; main()",
]


def run(*arguments):
    """Runs a command in this process; returns (exit code, stdout, stderr)."""
    from cervseg_jax.cli import main

    stdout, stderr = io.StringIO(), io.StringIO()
    before = sys.argv
    sys.argv = ["cervseg-jax", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            main()
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        sys.argv = before
    return code, stdout.getvalue(), stderr.getvalue()


def run_process(*arguments, prelude=""):
    """Runs a command in a process of its own, after some code; returns (exit code, stdout, stderr)."""
    command = [*COMMAND[:-1], prelude + COMMAND[-1], *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=240)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr


def refused(code, *arguments):
    """Runs a command that must fail with one message, and returns the message."""
    got, _, stderr = run(*arguments)
    assert got == code, (got, stderr)
    errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, stderr
    return stderr[stderr.index("error: ") :]


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def embedded_data(page):
    """Returns the data of a report."""
    return json.loads(re.search(r'<script type="application/json" id="page-data">(.*?)</script>', page)[1])


def weights_of(run_dir):
    contract = json.loads((run_dir / "best" / "contract.json").read_text())
    with np.load(run_dir / "best" / contract["weights_file"]) as stored:
        return {name: stored[name] for name in stored.files}


def assert_same_run(one, other):
    """Two runs have the same history, apart from the clock, and bit-equal best weights."""
    clock = ("seconds", "images_per_second", "input_wait")
    histories = [
        [{key: value for key, value in row.items() if key not in clock} for row in rows_of(path / "metrics.csv")]
        for path in (one, other)
    ]
    assert histories[0] == histories[1]
    a, b = weights_of(one), weights_of(other)
    assert a.keys() == b.keys()
    assert all(np.array_equal(a[name], b[name]) for name in a)


def start(arguments, folder):
    """Starts a training in a process of its own, with the devices and compiled programs of the tests' process."""
    command = [*COMMAND, *map(str, arguments), "--run-dir", str(folder)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def wait_for(condition, process, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


def draw_discs(folder: Path, *, count: int, size: tuple[int, int] = (48, 40), seed: int = 0) -> None:
    """Writes images with dark discs on bright ground, and their exact masks."""
    rng = np.random.default_rng(seed)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    rows, columns = np.mgrid[: size[0], : size[1]]
    for index in range(count):
        mask = np.zeros(size, np.uint8)
        for _ in range(3):
            center, radius = rng.uniform(0.2, 0.8, 2) * size, rng.uniform(4, 8)
            mask |= ((rows - center[0]) ** 2 + (columns - center[1]) ** 2 < radius**2).astype(np.uint8)
        image = np.where(mask[..., None] > 0, (90, 60, 70), (230, 220, 225)) + rng.normal(0, 8, (*size, 3))
        cv2.imwrite(str(folder / "images" / f"disc_{index:03d}.png"), np.clip(image, 0, 255).astype(np.uint8))
        cv2.imwrite(str(folder / "masks" / f"disc_{index:03d}.png"), mask * 255)


TINY_CONFIG = """
model:
  name: unet
  image_size: [32, 48]
  args: {base_filters: 4, levels: 3, dropout_rate: 0.1}
data:
  root: data
augment:
  operations:
    - {name: flip}
    - {name: affine, probability: 0.5}
train:
  epochs: 3
  batch_size: 4
  learning_rate: 5e-3
  seed: 3
infer:
  num_infer_images: 2
"""
