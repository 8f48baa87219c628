"""The measurements of `bench`."""

import functools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from cervseg_jax.bench.baselines import BASELINES
from cervseg_jax.bench.subject import input_batches, prepare_subject, with_precision
from cervseg_jax.bench.timing import Timing, product_call, time_in_turns
from cervseg_jax.console import Reporter
from cervseg_jax.curation.dataset_folder import ensure_synthetic_dataset
from cervseg_jax.data.batch import Batch
from cervseg_jax.data.pairs import Pair, find_pairs
from cervseg_jax.data.samples import sample_cache, sample_loader
from cervseg_jax.engine.cost import peak_process_bytes
from cervseg_jax.schema import Config, SyntheticConfig

PRECISIONS = ("float32", "bfloat16")
DEFAULT_RECIPE: dict[str, Any] = {
    "model": {
        "name": "unet",
        "image_size": [256, 256],
        "args": {"base_filters": 16, "levels": 6, "kernel_size": 9, "dilation": 3, "dropout_rate": 0.05},
    },
    "data": {"root": "drawn"},
    "train": {"epochs": 1, "batch_size": 2, "learning_rate": 1e-4, "loss": "bce_dice"},
}
"""The published network at a size that two cores can time, with synthetic images."""
INPUT_IMAGES = 64
"""Images of the dataset for timing the input."""
INPUT_BATCHES = 32
"""Batches per timing of the input: many more than are read ahead, because buffers refill during other timings."""


def measure_all(
    config: Config, *, against: Sequence[str], precisions: Sequence[str], rounds: int, reporter: Reporter
) -> dict[str, Any]:
    """Times training, prediction and input of a recipe, and the same work in other programs.

    Args:
      config: the recipe; if its data is missing, synthetic images of the same size are used.
      against: keys of `BASELINES`; they run in float32.
      precisions: "float32", "bfloat16" or both.
      rounds: how often each function is timed, in turns.
      reporter: for messages.

    Returns:
      JSON values that describe the machine and the recipe, and `rows`: times and rates of one batch by name.
    """
    batch_size = config.train.batch_size
    calls: dict[str, Callable[[], None]] = {}
    batches_per_call: dict[str, int] = {}
    flops: dict[str, float] = {}
    compiled: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        config, pairs = _with_images(config, Path(folder))
        for precision in precisions:
            reporter.info(f"compiling the {precision} step ...")
            subject = prepare_subject(with_precision(config, precision))
            calls[f"train step, {precision}"], calls[f"forward, {precision}"] = subject.step, subject.forward
            flops[f"train step, {precision}"] = subject.cost.flops
            calls[f"matrix product, {precision}"], flops[f"matrix product, {precision}"] = product_call(precision)
            compiled[precision] = {
                "trace_seconds": subject.cost.trace_seconds,
                "compile_seconds": subject.cost.compile_seconds,
                "step_flops": subject.cost.flops,
                "temporary_bytes": subject.cost.temporary_bytes,
            }
            if precision == precisions[0]:
                batches = input_batches(config, pairs, sample_cache(config))
                for name, source in (
                    ("input alone, from files", input_batches(config, pairs, sample_loader(config))),
                    ("input alone, from memory", batches),
                ):
                    calls[name] = functools.partial(_drain, source)
                    batches_per_call[name] = INPUT_BATCHES
                calls[f"train step with input, {precision}"] = functools.partial(subject.fed_step, batches)
        for name in against:
            reporter.info(f"preparing {name} ...")
            baseline = BASELINES[name](with_precision(config, "float32"))
            for kind, call in (("train step", baseline.step), ("forward", baseline.forward)):
                calls[f"{kind}, {name}"] = call
                batches_per_call[f"{kind}, {name}"] = baseline.num_batches
        reporter.info(f"timing {len(calls)} functions in turns, {rounds} times each ...")
        times = time_in_turns(calls, rounds=rounds)
    ceilings = {p: flops[f"matrix product, {p}"] / times[f"matrix product, {p}"].median for p in precisions}
    rows = {
        name: _row(
            timing, batches_per_call.get(name, 1), batch_size, flops.get(name), ceilings.get(name.split(", ")[-1])
        )
        for name, timing in times.items()
    }
    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "num_devices": jax.device_count(),
        "model": config.model.name,
        "args": dict(config.model.args),
        "image_size": list(config.model.image_size),
        "batch_size": batch_size,
        "jax": jax.__version__,
        "compiled": compiled,
        "peak_memory_bytes": peak_process_bytes(),
        "rows": rows,
    }


def _with_images(config: Config, folder: Path) -> tuple[Config, list[Pair]]:
    """Returns the recipe and its training images; synthetic ones in `folder` if its data is missing."""
    data = config.data
    if not data.root.exists():
        height, width = config.model.image_size
        synthetic = SyntheticConfig(train=16, valid=1, test=1, size=(height, width), seed=0)
        data = data.model_copy(update={"root": folder / "synthetic", "synthetic": synthetic, "split": None})
        ensure_synthetic_dataset(data.root, synthetic)
    return config.model_copy(update={"data": data}), find_pairs(data, needed=("train",))[0]["train"][:INPUT_IMAGES]


def _drain(batches: Iterator[Batch]) -> None:
    for _ in range(INPUT_BATCHES):
        next(batches)


def _row(
    timing: Timing, num_batches: int, batch_size: int, flops: float | None, ceiling: float | None
) -> dict[str, Any]:
    seconds = [value / num_batches for value in timing.seconds]
    median = timing.median / num_batches
    row: dict[str, Any] = {"seconds": median, "fastest": min(seconds), "slowest": max(seconds)}
    row["images_per_second"] = batch_size / median
    if flops is not None:
        row["flops_per_second"] = flops / median
        if ceiling is not None:
            row["share_of_ceiling"] = flops / median / ceiling
    return row
