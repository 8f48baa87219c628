"""Benchmark of data preparation: the 20 variants per source of the reference recipe, and online augmentation.

Run: python scripts/benchmark_augment.py
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from cervseg_jax.annotations.outlines import draw_instances
from cervseg_jax.curation import reference_style
from cervseg_jax.curation.dataset_folder import write_scenes
from cervseg_jax.curation.reference_dataset import build_reference_dataset
from cervseg_jax.curation.synthetic import draw_scene
from cervseg_jax.data.augment import AUGMENTATIONS
from cervseg_jax.data.samples import Sample

SIDE = 512
NUM_SOURCES = 48
REFERENCE_SECONDS = 2.7
"""Time of the reference implementation for 20 variants of one image and mask, including files, on one core."""


def median_seconds(work: Callable[[], object], repeats: int = 5) -> float:
    """Returns the median time of `repeats` calls in seconds, after one warm-up call."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def loop_maps(side: int, center: tuple[float, float], radius: float, amount: float) -> np.ndarray:
    """Returns the coordinate maps of the radial warp, float32 [2, side, side], computed pixel by pixel."""
    maps = np.empty((2, side, side), np.float32)
    for row in range(side):
        for column in range(side):
            dx, dy = column - side * center[0], row - side * center[1]
            distance, radius_px = (dx * dx + dy * dy) ** 0.5, side * radius
            factor = 1.0
            if 0 < distance < radius_px:
                factor = float(np.sin(np.pi * distance / radius_px / 2)) ** amount
            maps[0, row, column] = factor * dx + side * center[0] if distance < radius_px else column
            maps[1, row, column] = factor * dy + side * center[1] if distance < radius_px else row
    return maps


def main() -> None:
    """Runs the benchmark and prints a table; writes JSON to the file given as argument, if any."""
    scene = draw_scene(shape=(SIDE, SIDE), seed=0)
    labels = draw_instances(scene.outlines, shape=(SIDE, SIDE))
    sample = Sample(scene.image, (labels > 0).astype(np.uint8), labels)
    results: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_scenes(root / "source", num_images=NUM_SOURCES, seed=0, size=(SIDE, SIDE))
        start = time.perf_counter()
        build_reference_dataset(root / "source", root / "built", seed=0)
        results["reference recipe, seconds per source, all cores, files included"] = (
            time.perf_counter() - start
        ) / NUM_SOURCES
    image = np.ascontiguousarray(scene.image[:, :, ::-1])
    results["20 variants of one image, seconds, one thread, no files"] = median_seconds(
        lambda: list(reference_style.offline_variants(image, is_mask=False, random=np.random.default_rng(0)))
    )
    results["radial maps, pixel loop, seconds"] = median_seconds(lambda: loop_maps(SIDE, (0.3, 0.3), 0.3, 0.3), 1)
    uncached = reference_style._bulge_maps.__wrapped__
    results["radial maps, vectorized, seconds"] = median_seconds(lambda: uncached(SIDE, SIDE, (0.3, 0.3), 0.3, 0.3))
    for name, function in AUGMENTATIONS.items():
        seconds = median_seconds(lambda function=function: function(sample, np.random.default_rng(0)))
        results[f"online {name}, images per second per core"] = 1 / seconds
    for name, value in results.items():
        print(f"{name:<70}{value:12.4g}")
    ratio = REFERENCE_SECONDS / results["reference recipe, seconds per source, all cores, files included"]
    print(
        f"the reference takes {REFERENCE_SECONDS} s per source on one core, {ratio:.1f} times as long as this package"
    )
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
