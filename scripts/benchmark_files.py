"""Benchmark of file handling and start-up: decoding, `infer` on a folder, and cold starts.

Run: python scripts/benchmark_files.py RUN [--images 64] [--rounds 5]
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

from cervseg_jax.bench.timing import time_in_turns
from cervseg_jax.console import Reporter
from cervseg_jax.curation.synthetic import draw_scene
from cervseg_jax.data.decode import decode_image
from cervseg_jax.runs.folder import load_run_config
from cervseg_jax.segmentation.folder import InferRequest, infer_files
from cervseg_jax.segmentation.segmenter import load_segmenter

SIDE = 512
PROGRAM = str(Path(sys.executable).with_name("cervseg-jax"))


def main(arguments: Sequence[str]) -> None:
    """Runs all benchmarks and prints the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="a finished run")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    run = options.run.absolute()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "images").mkdir()
        for seed in range(options.images):
            image = draw_scene(shape=(SIDE, SIDE), seed=seed).image
            cv2.imwrite(str(folder / "images" / f"synthetic_{seed:03}.jpg"), image[:, :, ::-1])
        _decoding(sorted((folder / "images").iterdir()), options.rounds)
        _inference(run, folder, options)
        _cold_starts(run, folder)


def _decoding(paths: Sequence[Path], rounds: int) -> None:
    data = [path.read_bytes() for path in paths]
    cv2.setNumThreads(1)
    times = time_in_turns(
        {
            "OpenCV": lambda: [cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR) for content in data],
            "cervseg-jax": lambda: [decode_image(content, source=Path("a.jpg")) for content in data],
        },
        rounds=rounds,
    )
    for name, timing in times.items():
        print(f"decoding {SIDE}x{SIDE} JPEG on one core, {name}: {len(data) / timing.median:.0f} images/s")


def _inference(run: Path, folder: Path, options: argparse.Namespace) -> None:
    """Times `infer` on a folder, and the network alone on as many images in memory."""
    config = load_run_config(run, [])
    predictor = load_segmenter([run], config).predictor
    batch = np.zeros((predictor.batch_size, *predictor.image_size, 3), np.uint8)
    num_batches = -(-options.images // predictor.batch_size)

    def network_only() -> None:
        for _ in range(num_batches):
            predictor.predict(batch)

    def with_files(outputs: Sequence[str], source: Path = folder / "images") -> Callable[[], None]:
        def call() -> None:
            request = InferRequest(run, (source,), folder / "out", outputs=tuple(outputs), overwrite=True)
            infer_files(request, reporter=Reporter(quiet=True))

        return call

    times = time_in_turns(
        {
            "network alone": network_only,
            "infer, masks of one image": with_files(["masks"], sorted((folder / "images").iterdir())[0]),
            "infer, masks": with_files(["masks"]),
            "infer, masks and nuclei": with_files(["masks", "nuclei"]),
        },
        rounds=options.rounds,
    )
    # The run on one image covers loading, compilation and one batch; subtract it.
    steady = times["infer, masks"].median - times["infer, masks of one image"].median
    overhead = steady / (times["network alone"].median * (num_batches - 1) / num_batches) - 1
    print(f"masks of a folder, after loading and compilation: {overhead:+.0%} relative to the network alone")
    for name, timing in times.items():
        print(
            f"{options.images} images, {name}: {timing.median:.2f} s "
            f"({min(timing.seconds):.2f}-{max(timing.seconds):.2f})"
        )


def _cold_starts(run: Path, folder: Path) -> None:
    image = sorted((folder / "images").iterdir())[0]
    infer = ["infer", str(run), "--images", str(image), "--out", str(folder / "one"), "--overwrite", "--quiet"]
    for name, command in (("--help", ["--help"]), ("infer on one image", infer)):
        print(f"{name}: {_seconds(command):.2f} s")
    seconds = []
    for index in range(3):  # the first run may have to compile
        settings = ["train.epochs=1", "train.steps_per_epoch=1", "train.log_steps=1"]
        command = ["train", str(run / "config.yaml"), "--run-dir", str(folder / f"run{index}"), "--quiet"]
        process = subprocess.Popen([PROGRAM, *command, *(word for setting in settings for word in ("--set", setting))])
        start = time.perf_counter()
        log = folder / f"run{index}" / "log.jsonl"
        while process.poll() is None and not (log.is_file() and '"event": "steps"' in log.read_text()):
            time.sleep(0.02)
        seconds.append(time.perf_counter() - start)
        process.wait()
    print(f"train until its first step: {seconds[0]:.1f} s, repeated: {statistics.median(seconds[1:]):.1f} s")


def _seconds(command: Sequence[str]) -> float:
    times = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([PROGRAM, *command], check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


if __name__ == "__main__":
    main(sys.argv[1:])
