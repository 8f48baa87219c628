"""Data in a bucket: time to the first training step, memory and requests; and `infer` that is killed again and again.

The bucket is a server on this machine (`tests/bucket_server.py`), which lets a share of the requests fail: with status
503, without an answer, or with half of it. A dataset of small images is drawn; its batches are made from a folder and
from the bucket, and a small network is trained on it. Then `infer` from the bucket to the bucket is killed at random
times, with an empty cache each time, as on another machine, and the results must be byte for byte those of a folder.

Run: python scripts/benchmark_bucket.py OUT [--images 20000] [--steps 40] [--fail 0.1] [--kills 15]
  [--only draw|batches|train|kills]
"""

import argparse
import csv
import io
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np

from cervseg_jax.data.manifest import Record, write_manifest
from cervseg_jax.files import sha256_of

SIDE_PX = 64
NUM_HELD_OUT = 200
"""Images of each of valid and test."""
NUM_INFERRED = 60
SERVER = Path(__file__).resolve().parents[1] / "tests" / "bucket_server.py"
COMMAND = [sys.executable, "-c", "from cervseg_jax.cli import main; main()"]
CONFIG = """
model:
  name: unet
  image_size: [64, 64]
  args: {base_filters: 4, levels: 3, dropout_rate: 0.1}
data: {root: data}
train: {epochs: 1, batch_size: 16, learning_rate: 1e-3, log_steps: 1}
infer: {num_infer_images: 2}
"""
OUTPUTS = "masks,overlays,instances,nuclei,geojson,coco,rois"


class Server:
    """A bucket server in a process of its own."""

    def __init__(self, folder: Path, share: float, cache: Path) -> None:
        """Serves a folder and lets a share of the requests fail."""
        command = [sys.executable, str(SERVER), str(folder), str(share)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        name, _, address = self._process.stdout.readline().removeprefix("export ").strip().partition("=")
        self.environment = os.environ | {
            name: address,
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
            "CERVSEG_CACHE_DIR": str(cache),
        }

    def stop(self) -> dict[str, int]:
        """Stops it; returns the number of requests of each kind."""
        self._process.send_signal(signal.SIGINT)
        return json.loads(self._process.communicate()[0])


def draw_dataset(root: Path, count: int) -> None:
    """Writes discs on a bright ground, their masks and the manifest, unless they are there."""
    if (root / "manifest.csv").exists():
        return
    rng = np.random.default_rng(0)
    records = []
    for index in range(count):
        split = "valid" if index < NUM_HELD_OUT else "test" if index < 2 * NUM_HELD_OUT else "train"
        mask = np.zeros((SIDE_PX, SIDE_PX), np.uint8)
        for _ in range(3):
            cv2.circle(mask, rng.integers(8, SIDE_PX - 8, 2).tolist(), int(rng.integers(4, 10)), 255, -1)
        noise = rng.integers(0, 16, (SIDE_PX, SIDE_PX, 3), dtype=np.uint8)
        image = np.where(mask[..., None] > 0, np.uint8(80), np.uint8(220)) + noise
        stem, packed = f"disc_{index:05d}", cv2.imencode(".png", image)[1].tobytes()
        for name, data in (("images", packed), ("masks", cv2.imencode(".png", mask)[1].tobytes())):
            (root / split / name).mkdir(parents=True, exist_ok=True)
            (root / split / name / f"{stem}.png").write_bytes(data)
        sizes = (SIDE_PX,) * 4
        share = float((mask > 0).mean())
        fields = (split, stem, stem, -1, "", "", "", *sizes, "", -1, share, "", sha256_of(packed))
        records.append(Record._make(fields))
    write_manifest(root / "manifest.csv", records)


def train(out: Path, root: str, environment: dict[str, str], steps: int) -> tuple[float, float]:
    """Trains for some steps; returns seconds to the end of the first one, and the peak memory in MiB."""
    shutil.rmtree(out, ignore_errors=True)
    given = ["train", str(out.parent / "tiny.yaml"), "--run-dir", str(out), "--set", f"train.steps_per_epoch={steps}"]
    start = time.monotonic()
    process = subprocess.Popen([*COMMAND, *given, "--set", f"data.root={root}", "--quiet"], env=environment)
    first = None
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        log = out / "log.jsonl"
        if first is None and log.exists() and '"steps"' in log.read_text():
            first = time.monotonic() - start
        if pid:
            break
        time.sleep(0.05)
    if status or first is None:
        raise SystemExit(f"the training from {root} failed")
    return first, usage.ru_maxrss / 1024


def measure_training(out: Path, *, count: int, steps: int, fail: float) -> None:
    """Prints a table of trainings from a folder, from the bucket, and with failing requests."""
    draw_dataset(out / "bucket" / "data", count)
    print(f"{count} images of {SIDE_PX}x{SIDE_PX}, {steps} steps of 16 images, {NUM_HELD_OUT} validation images")
    first, memory = train(out / "run-folder", str(out / "bucket" / "data"), dict(os.environ), steps)
    print(f"folder: first step after {first:.1f} s, peak memory {memory:.0f} MiB", flush=True)
    for title, share, is_new in (("bucket", 0.0, True), ("bucket, again", 0.0, False), ("failing", fail, True)):
        if is_new:
            shutil.rmtree(out / "cache", ignore_errors=True)
        server = Server(out / "bucket", share, out / "cache")
        first, memory = train(out / "run-bucket", "gs://mine/data", server.environment, steps)
        counts = server.stop()
        read = min(count - 2 * NUM_HELD_OUT, 16 * steps) + NUM_HELD_OUT
        print(
            f"{title} ({share:.0%} fail): first step after {first:.1f} s, peak memory {memory:.0f} MiB, requests "
            f"{json.dumps(counts)}, {counts.get('read', 0) / read:.2f} reads per image of {read} used (image and mask)",
            flush=True,
        )


def make_batches(root: str, steps: int) -> None:
    """Makes training batches in this process; prints seconds to the first and last one, and the peak memory in MiB."""
    start = time.monotonic()
    from cervseg_jax.config import load_config
    from cervseg_jax.console import Reporter
    from cervseg_jax.data.pipeline import train_batches
    from cervseg_jax.data.samples import sample_cache
    from cervseg_jax.training.data import read_data

    config = load_config(Path("tiny.yaml"), [f"data.root={root}", f"train.steps_per_epoch={steps}"])
    imported = time.monotonic() - start
    pairs = read_data(config, Reporter(quiet=True))["train"].pairs
    listed = time.monotonic() - start
    batches = train_batches(config, pairs, start_step=0, load=sample_cache(config))
    next(batches)
    first = time.monotonic() - start
    for _ in range(steps - 1):
        next(batches)
    last = time.monotonic() - start
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"imported": imported, "listed": listed, "first": first, "last": last, "memory": memory}))
    sys.stdout.flush()
    os._exit(0)  # without waiting for the batches that are read ahead


def measure_batches(out: Path, *, count: int, steps: int, fail: float) -> None:
    """Prints seconds and memory of making batches from a folder, from the bucket, and with failing requests."""
    command = [sys.executable, __file__, str(out), "--steps", str(steps), "--only", "make", "--root"]
    rounds = ((None, True), (0.0, True), (0.0, False), (fail, True))
    for share, is_new in rounds:
        if is_new:
            shutil.rmtree(out / "cache", ignore_errors=True)
        server = None if share is None else Server(out / "bucket", share, out / "cache")
        root = str(out / "bucket" / "data") if server is None else "gs://mine/data"
        environment = dict(os.environ) if server is None else server.environment
        done = subprocess.run([*command, root], cwd=out, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr)
        told = json.loads(done.stdout.splitlines()[-1])
        counts = {} if server is None else server.stop()
        title = "folder" if share is None else f"bucket, {share:.0%} fail{'' if is_new else ', filled cache'}"
        shown = ", ".join(f"{name} {value:.1f}" for name, value in told.items())
        print(f"{title}: {count} images, {steps} batches of 16: {shown}; requests {json.dumps(counts)}", flush=True)


def infer(run: Path, images: str, out: str, *more: str, environment: dict[str, str]) -> subprocess.Popen[str]:
    """Starts `infer`."""
    given = ["infer", str(run), "--images", images, "--out", out, "--output", OUTPUTS, "--quiet", *more]
    return subprocess.Popen([*COMMAND, *given], env=environment, stderr=subprocess.PIPE, text=True)


def results(folder: Path, images: str) -> dict[str, bytes]:
    """Returns all files but the notes; in the tables without the folder of the images."""
    files = (path for path in folder.rglob("*") if path.is_file() and ".done" not in path.parts)
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
    rows = csv.reader(io.StringIO(found["images.csv"].decode()))
    found["images.csv"] = "\n".join(",".join(row).replace(f"{images}/", "") for row in rows).encode()
    return found


def download(address: str, folder: Path, environment: dict[str, str]) -> None:
    """Copies a folder of the bucket with the client alone."""
    code = "import sys, gcsfs; gcsfs.GCSFileSystem().get(sys.argv[1], sys.argv[2], recursive=True)"
    subprocess.run([sys.executable, "-c", code, address, str(folder)], env=environment, check=True)  # noqa: S603


def measure_kills(out: Path, *, kills: int, fail: float) -> None:
    """Kills `infer` from the bucket to the bucket, and compares with `infer` from a folder to a folder."""
    root = out / "bucket" / "data"
    draw_dataset(root, 3 * NUM_HELD_OUT)
    if not (out / "run-folder" / "best").exists():
        train(out / "run-folder", str(root), dict(os.environ), 5)
    shutil.rmtree(out / "images", ignore_errors=True)
    (out / "images" / "slides").mkdir(parents=True)
    for path in sorted((root / "test" / "images").iterdir())[:NUM_INFERRED]:
        shutil.copy(path, out / "images" / "slides")
    shutil.rmtree(out / "local", ignore_errors=True)
    slides = str(out / "images" / "slides")
    start = time.monotonic()
    alone = infer(out / "run-folder", slides, str(out / "local"), environment=dict(os.environ))
    if alone.wait():
        raise SystemExit(alone.communicate()[1])
    seconds = time.monotonic() - start
    server, rng = Server(out / "images", fail, out / "cache"), random.Random(1)
    num_killed = 0
    for number in range(kills + 1):
        shutil.rmtree(out / "cache", ignore_errors=True)
        more = ["--resume"] if number else []
        process = infer(out / "run-folder", "gs://mine/slides", "gs://mine/out", *more, environment=server.environment)
        if number < kills:
            try:
                process.wait(timeout=rng.uniform(0.4, 1.0) * seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                num_killed += 1
            process.communicate()
        elif process.wait():
            raise SystemExit(process.communicate()[1])
    shutil.rmtree(out / "fetched", ignore_errors=True)
    download("mine/out", out / "fetched", server.environment)
    counts = server.stop()
    expected, found = results(out / "local", slides), results(out / "fetched", "gs://mine/slides")
    different = sorted(
        name for name in expected.keys() | found.keys() if expected.get(name, b"") != found.get(name, b"")
    )
    print(
        f"infer from gs:// to gs://, {NUM_INFERRED} images, {fail:.0%} of requests fail: {num_killed} of {kills} calls "
        f"killed; {len(expected)} files, {len(different)} different {different[:5]}; requests {json.dumps(counts)}"
    )


def main() -> None:
    """Runs both parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--fail", type=float, default=0.1)
    parser.add_argument("--kills", type=int, default=15)
    parser.add_argument("--only", choices=("draw", "batches", "train", "kills", "make"))
    parser.add_argument("--root", help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    out = given.out.resolve()
    (out / "tiny.yaml").write_text(CONFIG)
    if given.only == "make":
        make_batches(given.root, given.steps)
    if given.only in (None, "draw"):
        draw_dataset(out / "bucket" / "data", given.images)
    if given.only in (None, "batches"):
        measure_batches(out, count=given.images, steps=given.steps, fail=given.fail)
    if given.only in (None, "train"):
        measure_training(out, count=given.images, steps=given.steps, fail=given.fail)
    if given.only in (None, "kills"):
        measure_kills(out, kills=given.kills, fail=given.fail)


if __name__ == "__main__":
    main()
