"""Kills processes and shards of `infer` for `kill_campaign.py`, and measures the rates of several processes."""

import argparse
import json
import random
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tifffile
from campaign_hosts import Hosts, end

from cervseg_jax.curation.synthetic import draw_scene
from cervseg_jax.pretrained_weights import find_run

SMALL_PX, SLIDE_PX, NUM_SLIDES = 96, 1000, 2
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
PATIENCE_SECONDS = 40
RATES_OF = (1, 2, 4)
"""Numbers of processes whose rates are measured."""
_RATE = re.compile(r"(?:process \d+: )?\d+ images, ([\d.]+) megapixels in .*: ([\d.]+) images/s, ([\d.]+) megapixels/s")


def kill_calls(
    out: Path, options: argparse.Namespace, rng: random.Random, hosts: Hosts
) -> tuple[list[dict[str, Any]], int]:
    """Kills processes of `infer` until there were enough kills.

    Returns:
      A row per lineage, and how many differ.
    """
    startup = _prepare(out, options, hosts)
    rows, failures = [], 0
    while sum(row["kills"] for row in rows) < options.kills:
        lineage = _Lineage(out / f"{options.task}-{len(rows)}", options, hosts, startup=startup)
        row = lineage.kill(rng)
        codes = lineage.finish()
        is_equal = set(codes) == {0} and _files(lineage.folder) == _files(out / "straight")
        failures += not is_equal or row["repeated_images"] > 0
        rows.append({**row, "equal": is_equal})
        print(json.dumps({"lineage": len(rows) - 1, **rows[-1]}), flush=True)
    return rows, failures


def measure_rates(
    out: Path, options: argparse.Namespace, _: random.Random, hosts: Hosts
) -> tuple[list[dict[str, Any]], int]:
    """Runs `infer` in `RATES_OF` processes; the first call is not counted, as it compiles.

    Returns:
      A row per number of processes, and how many differ.
    """
    _prepare(out, options, hosts)
    rows, failures = [], 0
    for count in RATES_OF:
        folder = out / f"rates-{count}"
        begin = time.monotonic()
        codes = end(_together(hosts, folder, count))
        seconds = time.monotonic() - begin
        is_equal = set(codes) == {0} and _files(folder) == _files(out / "straight")
        told = _RATE.findall((out / f"{folder.name}.log").read_text())
        images, megapixels = (sum(float(rates[place]) for rates in told) for place in (1, 2))
        rows.append(
            {
                "processes": count,
                "seconds": round(seconds, 1),
                "images_per_second": round(images, 2),
                "megapixels_per_second": round(megapixels, 3),
                "equal": is_equal,
                "kills": 0,
            }
        )
        failures += not is_equal or len(told) != count
        print(json.dumps(rows[-1]), flush=True)
    return rows, failures


class _Lineage:
    """An output folder that is filled by calls whose processes are killed."""

    def __init__(self, folder: Path, options: argparse.Namespace, hosts: Hosts, *, startup: float) -> None:
        self.folder = folder
        self._startup = startup
        self._options = options
        self._hosts = hosts
        self._is_sharded = options.task == "shards"
        self._num_images = options.images + NUM_SLIDES

    def kill(self, rng: random.Random) -> dict[str, Any]:
        """Starts calls and kills some of their processes, until all images are done; returns what happened."""
        row = {"kills": 0, "calls": 0, "repeated_images": 0, "longest_exit_seconds": 0.0}
        while len(before := _done(self.folder)) < self._num_images:
            processes = self._start(self._options.processes + (0 if self._is_sharded else row["calls"] % 2))
            victims = rng.sample(processes, rng.choice((rng.randint(1, len(processes)), len(processes))))
            num_left = self._num_images - len(before)
            targets = sorted(len(before) + rng.randrange(1 + num_left // 3) for _ in victims)
            for victim, target in zip(victims, targets, strict=True):
                latest = time.monotonic() + PATIENCE_SECONDS  # the others may wait for one that was killed
                while len(_done(self.folder)) < target and time.monotonic() < latest and _is_running(processes):
                    time.sleep(0.05)
                time.sleep(rng.uniform(0, 1.5 * self._startup if target == len(before) else 1))
                row["kills"] += victim.poll() is None
                victim.kill()
            began = time.monotonic()
            row["kills"] += self._end(processes)
            after = _done(self.folder)
            row["repeated_images"] += sum(after.get(note) != written for note, written in before.items())
            row["longest_exit_seconds"] = max(row["longest_exit_seconds"], round(time.monotonic() - began, 1))
            row["calls"] += 1
        return row

    def _end(self, processes: Sequence[subprocess.Popen[bytes]]) -> int:
        """Waits for processes; returns how many were killed as they did nothing for `PATIENCE_SECONDS`.

        These wait for a process that was killed before it connected, for five minutes at most.
        """
        num_done, since, killed = len(_done(self.folder)), time.monotonic(), 0
        while running := [process for process in processes if process.poll() is None]:
            if len(_done(self.folder)) != num_done:
                num_done, since = len(_done(self.folder)), time.monotonic()
            elif time.monotonic() - since > PATIENCE_SECONDS:
                for process in running:
                    process.kill()
                killed += len(running)
            time.sleep(0.1)
        end(processes)
        return killed

    def finish(self) -> list[int]:
        """Runs the command once more to its end, and `merge` for shards; returns all exit codes."""
        codes = end(self._start(self._options.processes))
        if self._is_sharded:
            parts = [str(path) for path in sorted(self.folder.iterdir())]
            codes.append(self._hosts.run(self.folder.parent, "merge", *parts, "--out", str(self.folder / "merged")))
        return codes

    def _start(self, count: int) -> list[subprocess.Popen[bytes]]:
        if not self._is_sharded:
            return _together(self._hosts, self.folder, count, "--resume")
        numbers = range(1, count + 1)
        parts = [
            [*INFER, f"{self.folder.name}/{number}", "--resume", "--shard", f"{number}/{count}"] for number in numbers
        ]
        return [
            self._hosts.launch(self.folder.parent, self.folder.name, part, host=host) for host, part in enumerate(parts)
        ]


def _is_running(processes: Sequence[subprocess.Popen[bytes]]) -> bool:
    return any(process.poll() is None for process in processes)


def _together(hosts: Hosts, folder: Path, count: int, *more: str) -> list[subprocess.Popen[bytes]]:
    """Starts the processes of one call."""
    command = [*INFER, folder.name, *more]
    connected = hosts.connected(count) if count > 1 else [[]]
    return [
        hosts.launch(folder.parent, folder.name, command + options, host=host) for host, options in enumerate(connected)
    ]


def _prepare(out: Path, options: argparse.Namespace, hosts: Hosts) -> float:
    """Makes weights and images, and runs one undisturbed process, unless an earlier task did so.

    Returns:
      The seconds of a call that finds everything done.
    """
    if (out / "straight" / "images.csv").exists():
        return _seconds_of_nothing(out, hosts)
    if options.run is None:
        hosts.run(out, "train", "recipe.yaml", "--run-dir", "run", "--set", "train.epochs=2")
    else:
        shutil.copytree(find_run(options.run), out / "run")
    hosts.run(out, "synth", "drawn", "--images", str(options.images), "--size", str(SMALL_PX), str(SMALL_PX))
    shutil.copytree(out / "drawn" / "images", out / "images")
    for index in range(NUM_SLIDES):
        slide = draw_scene(shape=(SLIDE_PX, SLIDE_PX), seed=options.seed, index=index).image
        path = out / "images" / f"slide_{index}.tif"
        tifffile.imwrite(path, slide, bigtiff=True, tile=(256, 256), photometric="rgb")
    if hosts.run(out, *INFER, "straight"):
        raise SystemExit(f"the undisturbed call failed; see {out}/infer.log")
    return _seconds_of_nothing(out, hosts)


def _seconds_of_nothing(out: Path, hosts: Hosts) -> float:
    """Returns the seconds of a call that finds everything done."""
    begin = time.monotonic()
    hosts.run(out, *INFER, "straight", "--resume")
    return time.monotonic() - begin


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
