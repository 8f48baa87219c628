"""Plan for a screening programme: hours and cost of each stage, from rates measured on this machine.

Draws a slide of sparse cells with JPEG tiles, measures the CPU seconds that each stage of `infer` takes, and those of
them that one thread takes after the other, and asks the TPU compiler for the cycles of the network (extra
`tpu-compile`; else `--cycles-per-tile`). CPU seconds are those of the process, so that other programs on the machine
change them little. With `--rounds`, elapsed seconds of the nuclei with one and two threads, in turns.

Run: python scripts/plan_screening.py OUT [--run pap] [--side 4096] [--cycles-per-tile N] [--rounds 3]
"""

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np

import cervseg_jax
from cervseg_jax.curation.synthetic import draw_scene
from cervseg_jax.data.slides import Slide
from cervseg_jax.files import make_folder, write_json
from cervseg_jax.pretrained_weights import find_run
from cervseg_jax.runs.weights import load_network
from cervseg_jax.segmentation.outputs import compute_results, write_results
from cervseg_jax.segmentation.result import Result
from cervseg_jax.segmentation.scale import without_flat_areas
from cervseg_jax.segmentation.segmenter import Segmenter

NUM_SLIDES, SLIDE_MEGAPIXELS = 10_000, 10_000
NUCLEUS_PX = 36.0
"""9 micrometers, an intermediate cell's nucleus, at 0.25 micrometers per pixel."""
CHIP_HZ = 1.5e9
"""197 TFLOP/s (v5e, bfloat16) by the 131,072 operations a cycle of four matrix units of 128 x 128."""
EFFICIENCY = 0.5
"""Share of the compiler's estimate that is reached: transfers and gaps between operations are not in it."""
CHIPS_PER_HOST = 8
DOLLARS_PER_CHIP_HOUR = 1.2
"""List price on demand, us-central1, 2025."""
THREADS = {"reading": 1, "tiling": 4, "nuclei": 14, "writing": 1}
"""Threads of a process for what is not serial in a stage: `ACCELERATOR_CALLS`, and half of the 28 vCPUs a chip of a
v5e-8 host, as two share a core."""
LANES = {"predicting a slide": ("reading", "tiling", "network"), "labelling the one before": ("nuclei", "writing")}
OUTPUTS = ("nuclei", "geojson", "instance_pyramids")
FIELD, NUM_FIELDS, CELLS_EVERY = 250, 8, 8
"""Side of a drawn field in pixels, different fields, and one in how many holds cells."""
BATCH = 64


def main(arguments: Sequence[str]) -> None:
    """Measures, and prints and writes the plan."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="a new folder")
    parser.add_argument("--run", type=Path, default=Path("pap"))
    parser.add_argument("--side", type=int, default=4096, help="side of the slide in pixels")
    parser.add_argument("--rounds", type=int, default=0, help="elapsed seconds of nuclei with 1 and 2 threads")
    parser.add_argument("--cycles-per-tile", type=float, help="cycles of a v5e chip; default: asks the TPU compiler")
    options = parser.parse_args(arguments)
    out = make_folder(options.out)
    stages, result = measure(options.run, _draw(out / "slide.tif", options.side), out)
    cycles = options.cycles_per_tile or cycles_per_tile(options.run)
    plan = {"nuclei_per_megapixel": result.labels.max() / (options.side**2 / 1e6), "cycles_per_tile": cycles}
    plan |= {"cpu_seconds_per_megapixel": {stage: cost.cpu for stage, cost in stages.items()}}
    plan |= {"serial_seconds_per_megapixel": {stage: cost.serial for stage, cost in stages.items()}}
    plan |= {"hours_per_process": hours(stages, cycles, options.run)}
    if options.rounds:
        plan["nuclei_elapsed_seconds"] = elapsed_seconds(result, options.rounds)
    write_json(out / "plan.json", plan)
    print(json.dumps(plan, indent=2))
    print("\n".join(_table(plan["hours_per_process"])))


class Cost(NamedTuple):
    """CPU seconds."""

    cpu: float
    """Of all threads."""
    serial: float
    """Of the thread that all others wait for."""


def measure(run: Path, path: Path, out: Path) -> tuple[dict[str, Cost], Result]:
    """Returns the cost per megapixel of the host's stages, and the result.

    "tiling" is what the host does around the network: cutting, resizing and blending tiles, and finding flat areas.
    """
    segmenter = dataclasses.replace(cervseg_jax.load(run), nucleus_px=NUCLEUS_PX)
    scale = segmenter.scale
    if scale is None:
        raise SystemExit(f"{run}: needs weights of one scale")
    slide = Slide(path)
    megapixels = slide.shape[0] * slide.shape[1] / 1e6
    height, width = segmenter.predictor.image_size

    def nothing(images: np.ndarray) -> np.ndarray:
        return np.zeros((len(images), height, width, 3), np.float32)

    idle = segmenter.predictor._replace(predict=without_flat_areas(nothing, scale.nucleus_px))
    reading = _Timed(slide)
    predicting = _cost(lambda: _predict(dataclasses.replace(segmenter, predictor=idle), reading))
    result = _predict(segmenter, slide)
    result.name = "slide"
    result.threads = max(2, THREADS["nuclei"])  # so that this thread does what is serial alone
    nuclei = _cost(lambda: compute_results(result, OUTPUTS))
    writing = _cost(lambda: write_results(out, result, OUTPUTS))
    tiling = Cost(predicting.cpu - reading.cost.cpu, predicting.serial - reading.cost.serial)
    # Reading is done by one thread after the other, whichever they are.
    costs = {"reading": Cost(reading.cost.cpu, reading.cost.cpu), "tiling": tiling, "nuclei": nuclei}
    costs["writing"] = Cost(writing.cpu, writing.cpu)
    return {stage: Cost(cost.cpu / megapixels, cost.serial / megapixels) for stage, cost in costs.items()}, result


def elapsed_seconds(result: Result, rounds: int) -> dict[str, list[float]]:
    """Returns the seconds that labels, outlines and measurements take with one and two threads, in turns."""
    seconds: dict[str, list[float]] = {"1": [], "2": []}
    for _ in range(rounds):
        for threads, values in seconds.items():
            again = result.with_postprocessing(result.postprocessing)
            again.threads = int(threads)
            begin = time.monotonic()
            compute_results(again, OUTPUTS)
            values.append(round(time.monotonic() - begin, 2))
            if not np.array_equal(again.labels, result.labels):
                raise SystemExit(f"{threads} threads give other labels")
    return seconds


def _predict(segmenter: Segmenter, image: Any) -> Any:
    return next(result for _, result in segmenter.predict([("slide", image)]))


class _Timed:
    """A slide whose windows are read on the clock of the process."""

    def __init__(self, slide: Slide) -> None:
        self._slide = slide
        self.shape = slide.shape
        self.cost = Cost(0.0, 0.0)

    def __getitem__(self, window: tuple[slice, slice]) -> np.ndarray:
        found: list[np.ndarray] = []
        own = _cost(lambda: found.append(self._slide[window]))
        self.cost = Cost(self.cost.cpu + own.cpu, self.cost.serial + own.serial)
        return found[0]


def _cost(work: Callable[[], Any]) -> Cost:
    process, thread = time.process_time(), time.thread_time()
    work()
    return Cost(time.process_time() - process, time.thread_time() - thread)


def cycles_per_tile(run: Path) -> float:
    """Returns the cycles that the TPU compiler expects for a tile of a large batch on a v5e."""
    from cervseg_jax.bench.cycles import estimated_cycles
    from cervseg_jax.bench.topology import topology_devices
    from cervseg_jax.data.batch import batch_sharding
    from cervseg_jax.models import backend_for
    from cervseg_jax.runtime.mesh import make_mesh, replicated

    network = load_network(find_run(run) / "best", precision="bfloat16")
    mesh = make_mesh(None, batch_size=BATCH, devices=topology_devices("v5e:1x1")[1])
    apply, images_sharding = network.apply_for(backend_for(mesh)), batch_sharding(mesh).image

    def probabilities(params: Any, model_state: Any, images: jax.Array) -> jax.Array:
        (logits, *_), _ = apply(params, model_state, images)
        return jax.nn.sigmoid(logits)

    def shapes(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated(mesh)), tree)

    images = jax.ShapeDtypeStruct((BATCH, *network.contract.image_size, 3), np.uint8, sharding=images_sharding)
    lowered = jax.jit(probabilities).lower(shapes(network.params), shapes(network.model_state), images)
    return estimated_cycles(lowered.compile().as_text() or "", set()).total / BATCH


def hours(stages: dict[str, Cost], cycles: float, run: Path) -> dict[str, float]:
    """Returns the hours that one process with one chip and `THREADS` takes for all slides, by stage."""
    network = load_network(find_run(run) / "best", precision="float32")
    assert network.contract.scale is not None  # noqa: S101 (`measure` has checked it)
    step = [0.75 * length for length in network.contract.image_size]  # a quarter of a tile overlaps the next
    factor = network.contract.scale.nucleus_px / NUCLEUS_PX
    tiles = SLIDE_MEGAPIXELS * 1e6 * factor**2 / (step[0] * step[1])
    per_slide = {
        stage: (cost.serial + (cost.cpu - cost.serial) / THREADS[stage]) * SLIDE_MEGAPIXELS
        for stage, cost in stages.items()
    }
    per_slide["network"] = tiles * cycles / CHIP_HZ / EFFICIENCY
    order = ("reading", "tiling", "network", "nuclei", "writing")
    return {stage: per_slide[stage] * NUM_SLIDES / 3600 for stage in order}


def _table(of_stages: dict[str, float]) -> list[str]:
    """Returns the plan for one process per chip as Markdown; a slide is predicted while the one before is labelled."""
    lanes = {lane: sum(of_stages[stage] for stage in stages) for lane, stages in LANES.items()}
    rows = [*of_stages.items(), *lanes.items(), ("both at once", max(lanes.values()))]
    lines = ["| stage | process hours | v5e-8 host days | dollars |", "|---|---|---|---|"]
    for stage, value in rows:
        days, dollars = value / CHIPS_PER_HOST / 24, value * DOLLARS_PER_CHIP_HOUR
        lines.append(f"| {stage} | {value:,.0f} | {days:,.1f} | {dollars:,.0f} |")
    return lines


def _draw(path: Path, side: int) -> Path:
    """Writes a slide of drawn fields, of which few hold cells, with JPEG tiles as scanners write them."""
    import tifffile  # pyright: ignore[reportMissingImports]

    fields = [draw_scene(shape=(FIELD, FIELD), seed=seed).image for seed in range(NUM_FIELDS)]
    image = np.full((side, side, 3), 235, np.uint8)
    for index, (top, left) in enumerate((top, left) for top in range(0, side, FIELD) for left in range(0, side, FIELD)):
        if index % CELLS_EVERY == 0:
            part = fields[index // CELLS_EVERY % NUM_FIELDS][: side - top, : side - left]
            image[top : top + part.shape[0], left : left + part.shape[1]] = part
    noise = np.random.default_rng(0).normal(0, 3, image.shape)
    image = np.clip(image + noise, 0, 255).astype(np.uint8)
    tifffile.imwrite(path, image, tile=(256, 256), photometric="rgb", compression="jpeg", bigtiff=True)
    return path


if __name__ == "__main__":
    main(sys.argv[1:])
