"""Kills trainings, or calls of `infer`, at random times, resumes them, and compares with an uninterrupted run.

Each lineage is one run folder: its training is started, killed after a random time and resumed until it has been killed
KILLS / LINEAGES times, and then finishes. Weights must be bit-equal, and histories equal except for timings. With
several processes, one of them is killed, or all with `--all`. STOP freezes one process, like a host that stops
responding, and kills it after the others have ended.

With `--task infer`, a lineage is one output folder for small images and two slides, filled by several processes; some
of them are killed, the others go on, and the next call may have one process more. With `--task shards`, each process
is a shard with a folder of its own, and `merge` joins the tables. All files must be equal to those of one process that
was not killed, and no image may be done a second time. `--task rates` kills nothing: it runs `infer` in 1, 2 and 4
processes, compares the files and prints the rates.

With `--namespaces`, each process has a network namespace of its own (Linux, root), like a host of a cluster.

Run: python scripts/kill_campaign.py OUT [--task train|infer|shards|rates] [--signal KILL|TERM|STOP] [--kills 50]
  [--lineages 5] [--run RUN] [--images 200] [--processes 1] [--all] [--namespaces] [--seed 0]
"""

import argparse
import csv
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from campaign_hosts import Hosts, end
from kill_inference import RATES_OF, kill_calls, measure_rates

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
CLOCK = ("seconds", "images_per_second", "input_wait")
ALLOWED = {"KILL": {0, 137, 134}, "TERM": {0, 75, 143, 134}, "STOP": {0, 137, 134}}
"""Expected exit codes by signal: finished or killed; 143 before there is anything to save; 134 for a process that
waited five minutes for a killed one to connect."""
PEER_LOST = 4
"""Exit code of a process that could not finish a checkpoint because another process had ended."""


def main(arguments: Sequence[str]) -> None:
    """Runs the campaign and prints one line per lineage; exits with 1 if any lineage differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="a new folder, or that of another task of infer")
    parser.add_argument("--task", choices=("train", "infer", "shards", "rates"), default="train")
    parser.add_argument("--run", type=Path, help="weights for infer; default: small ones are trained")
    parser.add_argument("--images", type=int, default=200, help="small images for infer, beside two slides")
    parser.add_argument("--signal", choices=ALLOWED, default="KILL")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--lineages", type=int, default=5)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--all", action="store_true", help="send the signal to all processes")
    parser.add_argument("--namespaces", action="store_true", help="each process in a network namespace (needs root)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.signal == "STOP" and (options.all or options.processes < 2):
        parser.error("--signal STOP requires --processes of at least 2 and excludes --all")
    if options.task != "train" and (options.signal != "KILL" or options.all):
        parser.error("--task infer, shards and rates take no --all, and no --signal but KILL")
    out: Path = options.out.absolute()
    if out.exists() and (options.task == "train" or not (out / "straight" / "images.csv").exists()):
        parser.error(f"{out} exists; choose a new folder, or that of another task of infer")
    out.mkdir(parents=True, exist_ok=True)
    (out / "recipe.yaml").write_text(CONFIG)
    rng = random.Random(options.seed)  # noqa: S311 (not used for security)
    run = {"train": _kill_trainings, "infer": kill_calls, "shards": kill_calls, "rates": measure_rates}[options.task]
    count = max(options.processes + 1, *RATES_OF) if options.task != "train" else options.processes
    with Hosts(count, with_namespaces=options.namespaces) as hosts:
        rows, failures = run(out, options, rng, hosts)
    total = sum(row["kills"] for row in rows)
    print(
        f"sent SIG{options.signal} {total} times, {options.processes} processes: "
        f"{failures} of {len(rows)} lineages failed"
    )
    (out / f"{options.task}.json").write_text(
        json.dumps({"options": vars(options), "rows": rows}, default=str, indent=2)
    )
    if failures:
        sys.exit(1)


def _kill_trainings(
    out: Path, options: argparse.Namespace, rng: random.Random, hosts: Hosts
) -> tuple[list[dict[str, Any]], int]:
    """Returns a row per lineage, and how many differ."""
    end(_start(hosts, out, "straight", options.processes))
    # A full training with a warm compilation cache, as in the lineages; then start-up alone, as the run is finished.
    full, startup = (_seconds(hosts, out, "again", options.processes) for _ in range(2))
    if not _equal(out / "straight", out / "again"):
        sys.exit("two uninterrupted runs differ, so the lineages cannot be compared with them")
    per_lineage = options.kills // options.lineages
    longest = startup + 2 * (full - startup) / per_lineage
    rows, failures = [], 0
    for lineage in range(options.lineages):
        codes, exits = [], []
        while len(codes) < per_lineage:
            processes = _start(hosts, out, f"lineage-{lineage}", options.processes)
            time.sleep(rng.uniform(0.3 * startup, longest))
            victims = processes if options.all else [rng.choice(processes)]
            before = [process.poll() for process in processes]
            for victim in victims:
                victim.send_signal(getattr(signal, f"SIG{options.signal}"))
            began = time.monotonic()
            if options.signal == "STOP":
                end([process for process in processes if process not in victims])
                victims[0].kill()
            ended = end(processes)
            exits.append(time.monotonic() - began)
            if any(code is None for code in before):
                codes.append(ended)
            elif all(code == 0 for code in ended):
                break  # the training had finished
        final: list[int] = []
        for _ in range(3):
            final = end(_start(hosts, out, f"lineage-{lineage}", options.processes))
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


def _start(hosts: Hosts, out: Path, name: str, count: int) -> list[subprocess.Popen[bytes]]:
    command = ["train", "recipe.yaml", "--run-dir", name, "--quiet"]
    connected = hosts.connected(count) if count > 1 else [[]]
    return [
        hosts.launch(out, f"{name}.{index}", command + options, host=index) for index, options in enumerate(connected)
    ]


def _seconds(hosts: Hosts, out: Path, name: str, count: int) -> float:
    began = time.monotonic()
    end(_start(hosts, out, name, count))
    return time.monotonic() - began


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
