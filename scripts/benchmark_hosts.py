"""Benchmark of the host side of training: input for 1 to 8 hosts, logging, and checkpoints.

Input: every host loads its share of a global batch that grows with the number of hosts. Hosts are simulated one at a
time, each with all cores, so the rate per host must not decrease with their number. Logging and checkpoints: the same
training with a log line per step and a checkpoint per second, and without.

Run: python scripts/benchmark_hosts.py configs/quickstart.yaml [--steps 60] [--repeats 3]
"""

import argparse
import csv
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from cervseg_jax.config import load_config
from cervseg_jax.curation.dataset_folder import ensure_synthetic_dataset
from cervseg_jax.data.pairs import find_pairs
from cervseg_jax.data.pipeline import train_batches
from cervseg_jax.data.samples import sample_loader
from cervseg_jax.schema import Config

HOSTS = (1, 2, 4, 8)
WARM_BATCHES = 3


def main(arguments: Sequence[str]) -> None:
    """Runs the benchmarks and prints two tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="section.key=value")
    options = parser.parse_args(arguments)
    config = load_config(options.config, options.overrides)
    if config.data.synthetic is not None:
        ensure_synthetic_dataset(config.data.root, config.data.synthetic)
    print("| hosts | batch | images per host | images/s per host, slowest and fastest |\n|---|---|---|---|")
    for hosts in HOSTS:
        share = config.train.batch_size
        rates = [_input_rate(config, hosts, host, options.steps) for host in range(hosts)]
        print(f"| {hosts} | {hosts * share} | {share} | {min(rates):.1f} {max(rates):.1f} |")
    plain = ("train.log_steps=1000000", "train.save_minutes=1000")
    busy = ("train.log_steps=1", f"train.save_minutes={1 / 60}")
    seconds: dict[tuple[str, ...], list[float]] = {plain: [], busy: []}
    for _ in range(options.repeats):  # interleaved, so that machine load affects both equally
        for settings, times in seconds.items():
            times.append(_epoch_seconds(options, settings))
    print("\n| | seconds per step, median (range) |\n|---|---|")
    for name, settings in (("without", plain), ("a log line per step, a checkpoint per second", busy)):
        per_step = [value / options.steps for value in seconds[settings]]
        print(f"| {name} | {statistics.median(per_step):.4f} ({min(per_step):.4f}-{max(per_step):.4f}) |")


def _input_rate(config: Config, hosts: int, host: int, steps: int) -> float:
    share = config.train.batch_size
    scaled = config.model_copy(update={"train": config.train.model_copy(update={"batch_size": hosts * share})})
    pairs = find_pairs(config.data)[0]["train"]
    images = range(host * share, (host + 1) * share)
    batches = train_batches(scaled, pairs, start_step=0, load=sample_loader(config), images=images)
    for _ in range(WARM_BATCHES):
        next(batches)
    start = time.perf_counter()
    for _ in range(steps):
        next(batches)
    return steps * share / (time.perf_counter() - start)


def _epoch_seconds(options: argparse.Namespace, settings: Sequence[str]) -> float:
    """Trains for two epochs and returns the duration of the second one in seconds."""
    assignments = [*options.overrides, *settings, "train.epochs=2", f"train.steps_per_epoch={options.steps}"]
    with tempfile.TemporaryDirectory() as folder:
        command = [str(Path(sys.executable).with_name("cervseg-jax")), "train", str(options.config), "--quiet"]
        command += ["--run-dir", f"{folder}/run", *(word for setting in assignments for word in ("--set", setting))]
        subprocess.run(command, check=True)
        with (Path(folder) / "run" / "metrics.csv").open() as file:
            return float(list(csv.DictReader(file))[-1]["seconds"])


if __name__ == "__main__":
    main(sys.argv[1:])
