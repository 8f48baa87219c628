"""Kills trainings, or calls of `infer`, at random times, resumes them, and compares with an uninterrupted run.

Each lineage is one run folder: its training is started, killed after a random time and resumed until it has been killed
KILLS / LINEAGES times, and then finishes. Weights must be bit-equal, and histories equal except for timings. With
several processes, one of them is killed, or all with `--all`. STOP freezes one process, like a host that stops
responding, and kills it after the others have ended.

With `--task infer`, a lineage is one output folder for 60 images and two slides, filled by several processes; some of
them are killed, the others go on, and the next call may have one process more. With `--task shards`, each process is a
shard with a folder of its own, and `merge` joins the tables. All files must be equal to those of one process that was
not killed, and no image may be done a second time.

Run: python scripts/kill_campaign.py OUT [--task train|infer|shards] [--signal KILL|TERM|STOP] [--kills 50]
  [--lineages 5] [--run RUN] [--processes 1] [--all] [--seed 0]
"""

import argparse
import csv
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from cervseg_jax.data.decode import read_image

CONFIG = """
model:
  name: unet
  image_size: [64, 64]
  args: {base_filters: 4, levels: 3, dropout_rate: 0.1, batch_norm: true}
data:
  root: data
  synthetic: {train: 12, valid: 4, test: 2, size: [64, 64]}
augment:
  operations:
    - {name: flip}
    - {name: affine, probability: 0.5}
train:
  epochs: 6
  batch_size: 4
  steps_per_epoch: 120
  learning_rate: 1e-3
  save_minutes: 0.01
  early_stop_patience: null
infer:
  num_infer_images: 2
"""
NUM_IMAGES = 62
INFER = (
    "infer",
    "run",
    "--images",
    "images",
    "--tiled",
    "--output",
    "masks,nuclei,coco,geojson,probabilities",
    "--out",
)
OUTPUT_FOLDERS = (".done", "masks", "nuclei", "coco", "geojson", "probabilities")
CLOCK = ("seconds", "images_per_second", "input_wait")
ALLOWED = {"KILL": {0, 137, 134}, "TERM": {0, 75, 143, 134}, "STOP": {0, 137, 134}}
"""Expected exit codes by signal: finished or killed; 143 before there is anything to save; 134 for a process that
waited five minutes for a killed one to connect."""
PEER_LOST = 4
"""Exit code of a process that could not finish a checkpoint because another process had ended."""


def main(arguments: Sequence[str]) -> None:
    """Runs the campaign and prints one line per lineage; exits with 1 if any lineage differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="a new folder")
    parser.add_argument("--task", choices=("train", "infer", "shards"), default="train")
    parser.add_argument("--run", type=Path, help="weights for infer and shards; default: small ones are trained")
    parser.add_argument("--signal", choices=ALLOWED, default="KILL")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--lineages", type=int, default=5)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--all", action="store_true", help="send the signal to all processes")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.signal == "STOP" and (options.all or options.processes < 2):
        parser.error("--signal STOP requires --processes of at least 2 and excludes --all")
    if options.task != "train" and (options.signal != "KILL" or options.all):
        parser.error("--task infer and shards kill one process (--signal KILL)")
    out: Path = options.out.absolute()
    out.mkdir(parents=True)
    (out / "recipe.yaml").write_text(CONFIG)
    rng = random.Random(options.seed)  # noqa: S311 (not used for security)
    rows, failures = (_kill_trainings if options.task == "train" else _kill_calls)(out, options, rng)
    total = sum(row["kills"] for row in rows)
    print(
        f"sent SIG{options.signal} {total} times, {options.processes} processes: "
        f"{failures} of {len(rows)} lineages failed"
    )
    (out / "campaign.json").write_text(json.dumps({"options": vars(options), "rows": rows}, default=str, indent=2))
    if failures:
        sys.exit(1)


def _kill_trainings(out: Path, options: argparse.Namespace, rng: random.Random) -> tuple[list[dict[str, Any]], int]:
    """Returns a row per lineage, and how many differ."""
    _end(_start(out, "straight", options.processes))
    # A full training with a warm compilation cache, as in the lineages; then start-up alone, as the run is finished.
    full, startup = (_seconds(out, "again", options.processes) for _ in range(2))
    if not _equal(out / "straight", out / "again"):
        sys.exit("two uninterrupted runs differ, so the lineages cannot be compared with them")
    per_lineage = options.kills // options.lineages
    longest = startup + 2 * (full - startup) / per_lineage
    rows, failures = [], 0
    for lineage in range(options.lineages):
        codes, exits = [], []
        while len(codes) < per_lineage:
            processes = _start(out, f"lineage-{lineage}", options.processes)
            time.sleep(rng.uniform(0.3 * startup, longest))
            victims = processes if options.all else [rng.choice(processes)]
            before = [process.poll() for process in processes]
            for victim in victims:
                victim.send_signal(getattr(signal, f"SIG{options.signal}"))
            began = time.monotonic()
            if options.signal == "STOP":
                _end([process for process in processes if process not in victims])
                victims[0].kill()
            ended = _end(processes)
            exits.append(time.monotonic() - began)
            if any(code is None for code in before):
                codes.append(ended)
            elif all(code == 0 for code in ended):
                break  # the training had finished
        final: list[int] = []
        for _ in range(3):
            final = _end(_start(out, f"lineage-{lineage}", options.processes))
            if set(final) == {0}:
                break
        is_equal = set(final) == {0} and _equal(out / "straight", out / f"lineage-{lineage}")
        may_lose_peer = options.processes > 1 and options.signal != "TERM"  # after SIGTERM all processes save together
        allowed = ALLOWED[options.signal] | ({PEER_LOST} if may_lose_peer else set())
        unexpected = [code for group in codes for code in group if code not in allowed]
        failures += not is_equal or bool(unexpected)
        rows.append(
            {
                "kills": len(codes),
                "equal": is_equal,
                "unexpected_exits": unexpected,
                "longest_exit_seconds": round(max(exits), 2),
            }
        )
        print(json.dumps({"lineage": lineage, **rows[-1]}), flush=True)
    return rows, failures


def _kill_calls(out: Path, options: argparse.Namespace, rng: random.Random) -> tuple[list[dict[str, Any]], int]:
    """Kills processes of `infer` until there were enough kills.

    Returns:
      A row per lineage, and how many differ.
    """
    if options.run is None:
        _run(out, "train", "recipe.yaml", "--run-dir", "run", "--set", "train.epochs=2")
    else:
        shutil.copytree(options.run, out / "run")
    _draw_images(out / "images")
    _run(out, *INFER, "straight")
    start = _start_shards if options.task == "shards" else _start_together
    rows, failures = [], 0
    while sum(row["kills"] for row in rows) < options.kills:
        folder = out / f"lineage-{len(rows)}"
        row = {"kills": 0, "calls": 0, "repeated_images": 0, "longest_exit_seconds": 0.0}
        while len(before := _done(folder)) < NUM_IMAGES:
            count = options.processes + (row["calls"] % 2 if options.task == "infer" else 0)
            processes = start(folder, count)
            victims = rng.sample(processes, rng.randint(1, len(processes)))
            targets = sorted(rng.randrange(len(before), NUM_IMAGES) for _ in victims)
            for victim, target in zip(victims, targets, strict=True):
                while len(_done(folder)) < target and any(process.poll() is None for process in processes):
                    time.sleep(0.05)
                time.sleep(rng.uniform(0, 10 if target == len(before) else 1))
                row["kills"] += victim.poll() is None
                victim.kill()
            began = time.monotonic()
            _end(processes)
            after = _done(folder)
            row["repeated_images"] += sum(after.get(note) != written for note, written in before.items())
            row["longest_exit_seconds"] = max(row["longest_exit_seconds"], round(time.monotonic() - began, 1))
            row["calls"] += 1
        codes = _end(start(folder, options.processes))
        if options.task == "shards":
            parts = [str(path) for path in sorted(folder.iterdir())]
            codes.append(_run(out, "merge", *parts, "--out", str(folder / "merged")))
        is_equal = set(codes) == {0} and _files(folder) == _files(out / "straight")
        failures += not is_equal or row["repeated_images"] > 0
        rows.append({**row, "equal": is_equal})
        print(json.dumps({"lineage": len(rows) - 1, **rows[-1]}), flush=True)
    return rows, failures


def _draw_images(folder: Path) -> None:
    """Draws small images, and two slides of more of them."""
    source = folder.with_name("drawn")
    _run(folder.parent, "synth", str(source), "--images", "160", "--size", "96", "96")
    paths = sorted((source / "images").iterdir())
    folder.mkdir()
    for path in paths[: NUM_IMAGES - 2]:
        shutil.copy(path, folder)
    pixels = np.stack([read_image(path) for path in paths[60:156]])
    for name, columns in (("slide_a", 4), ("slide_b", 6)):
        grid = pixels.reshape(-1, columns, *pixels.shape[1:])
        slide = np.concatenate(list(np.concatenate(list(grid.swapaxes(0, 1)), axis=2)))
        tifffile.imwrite(folder / f"{name}.tif", slide, bigtiff=True, tile=(64, 64), photometric="rgb")


def _done(folder: Path) -> dict[str, int]:
    """Returns the notes of complete images, with the time at which they were written."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob(".done/*.csv")}


def _files(folder: Path) -> dict[str, bytes]:
    """Returns the files by the end of their path, those of shards together."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != "plan.json")
    found: dict[str, bytes] = {}
    for path in paths:
        name = str(Path(*path.parts[-2:])) if path.parent.name in OUTPUT_FOLDERS else path.name
        content = path.read_bytes()
        if found.setdefault(name, content) != content:
            raise ValueError(f"{path}: differs between shards")
    return found


def _start_together(folder: Path, count: int) -> list[subprocess.Popen[bytes]]:
    command = [*INFER, folder.name, "--resume"]
    return [_launch(folder.parent, folder.name, command + options) for options in _connected(count)]


def _start_shards(folder: Path, count: int) -> list[subprocess.Popen[bytes]]:
    return [
        _launch(
            folder.parent, folder.name, [*INFER, f"{folder.name}/{number}", "--resume", "--shard", f"{number}/{count}"]
        )
        for number in range(1, count + 1)
    ]


def _start(out: Path, name: str, count: int) -> list[subprocess.Popen[bytes]]:
    command = ["train", "recipe.yaml", "--run-dir", name, "--quiet"]
    connected = _connected(count) if count > 1 else [[]]
    return [_launch(out, f"{name}.{index}", command + options) for index, options in enumerate(connected)]


def _connected(count: int) -> list[list[str]]:
    """Returns the options of each of several processes."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        port = listener.getsockname()[1]
    together = ["--coordinator", f"localhost:{port}", "--num-processes", str(count), "--process-id"]
    return [[*together, str(index)] for index in range(count)]


def _launch(out: Path, name: str, command: Sequence[str]) -> subprocess.Popen[bytes]:
    """Starts a command in the folder `out`, which adds to the log `name`."""
    program = str(Path(sys.executable).with_name("cervseg-jax"))
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    with (out / f"{name}.log").open("ab") as log:
        return subprocess.Popen([program, *command], env=environment, cwd=out, stdout=log, stderr=log)


def _run(out: Path, *command: str) -> int:
    """Runs a command to its end and returns its exit code."""
    return _end([_launch(out, command[0], command)])[0]


def _seconds(out: Path, name: str, count: int) -> float:
    began = time.monotonic()
    _end(_start(out, name, count))
    return time.monotonic() - began


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> list[int]:
    """Waits for processes and returns their exit codes; 128 + signal number for killed ones, as in a shell."""
    codes = [process.wait() for process in processes]
    return [code if code >= 0 else 128 - code for code in codes]


def _equal(expected: Path, actual: Path) -> bool:
    """Returns whether weights and histories are equal."""
    if not (actual / "metrics.csv").is_file():
        return False
    histories = []
    for folder in (expected, actual):
        with (folder / "metrics.csv").open() as file:
            histories.append([{k: v for k, v in row.items() if k not in CLOCK} for row in csv.DictReader(file)])
    weights = []
    for folder in (expected, actual):
        (path,) = (folder / "best").glob("*.npz")
        with np.load(path) as stored:
            weights.append({name: stored[name] for name in stored.files})
    a, b = weights
    return histories[0] == histories[1] and a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


if __name__ == "__main__":
    main(sys.argv[1:])
