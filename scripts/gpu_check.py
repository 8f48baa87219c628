"""Measures everything that an accelerator is needed for, in one command, for a machine that is lent for minutes.

Parts: equality and speed of the forms of a convolution; train step of the published network by form, precision and
batch size, as a share of a large matrix product; PyTorch's twin in the same precision, where PyTorch is installed;
repeated steps bit by bit; loss curves; inference; input; kernels of a step. A table is printed after each part, and
OUT/results.json is written after each row, so that a run that is cut off still tells. Needs no network.

Run: python scripts/gpu_check.py OUT [--minutes 12] [--small]
"""

import argparse
import functools
import gzip
import importlib.metadata
import json
import re
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

Row = dict[str, Any]
PROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"
PRECISIONS = ("float32", "bfloat16")
SHAPES = ((1, 3, 16, 9, 3, 8), (1, 16, 16, 9, 3, 8), (1, 32, 16, 9, 3, 8), (2, 32, 32, 7, 2, 4), (4, 64, 64, 5, 1, 2))
"""Convolutions of the published network: factor of reduction, channels, filters, kernel, dilation, packed pixels."""


class Scale(NamedTuple):
    """How much is measured."""

    size: int
    """Side of the images in pixels."""
    levels: int
    batch_sizes: tuple[int, ...]
    rounds: int
    """How often each function is timed."""
    steps: int
    """Of the loss curves."""
    side: int
    """Side of the image for inference, in pixels."""


FULL = Scale(size=512, levels=8, batch_sizes=(2, 8, 16), rounds=10, steps=200, side=4096)
SMALL = Scale(size=64, levels=3, batch_sizes=(2,), rounds=1, steps=4, side=256)


def main(arguments: Sequence[str]) -> None:
    """Runs the parts in order until the time is over."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="folder for results.json")
    parser.add_argument("--minutes", type=float, default=12.0, help="start nothing new after these")
    parser.add_argument("--small", action="store_true", help="small images and few steps, to try the script on a CPU")
    options = parser.parse_args(arguments)
    require_packages(PROJECT)
    options.out.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + 60 * options.minutes
    results: dict[str, Any] = {}
    for part in PARTS:
        results[part.__name__] = rows = []
        failure = collect(part(SMALL if options.small else FULL), rows, deadline)
        print(f"\n## {part.__name__}\n\n{table(rows)}" + (f"\n{failure}" if failure else ""), flush=True)
        (options.out / "results.json").write_text(json.dumps(results, indent=1))


def require_packages(project: Path) -> None:
    """Exits with a message if a package that the project needs is not installed."""
    named = tomllib.loads(project.read_text())["project"]["dependencies"]
    missing = []
    for requirement in named:
        name = re.split(r"[^\w.-]", requirement)[0]
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(requirement)
    if missing:
        words = " ".join(f"'{requirement}'" for requirement in missing)
        sys.exit(
            f"missing: {', '.join(missing)}. On a machine with a network: pip install --target packages {words}; then "
            "copy the folder here and set PYTHONPATH=packages"
        )


def collect(measured: Iterator[Row], rows: list[Row], deadline: float) -> str:
    """Appends rows until the time is over, and returns why there are no more."""
    try:
        while time.monotonic() < deadline:
            rows.append(next(measured))
    except StopIteration:
        return ""
    except Exception as error:  # noqa: BLE001 (the other parts shall still run)
        return f"failed: {type(error).__name__}: {str(error)[:500]}"
    return "the time is over"


def table(rows: Sequence[Row]) -> str:
    """Returns rows as a table in Markdown."""
    names = list(dict.fromkeys(name for row in rows for name in row if name != "series"))
    lines = [names, ["---"] * len(names)]
    for row in rows:
        cells = (row.get(name, "") for name in names)
        lines.append([f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in cells])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) if rows else "no rows"


def machine(scale: Scale) -> Iterator[Row]:
    """The device, and the rate of a large matrix product."""
    import jax

    for precision in PRECISIONS:
        yield {
            "device": jax.devices()[0].device_kind,
            "jax": jax.__version__,
            "precision": precision,
            "product, TFLOP/s": product_rate(precision, scale.rounds) / 1e12,
        }


@functools.cache
def product_rate(precision: str, rounds: int) -> float:
    """Returns the measured operations per second of a large matrix product."""
    from cervseg_jax.bench.timing import product_call, time_in_turns

    call, operations = product_call(precision)
    return operations / time_in_turns({"product": call}, rounds=rounds)["product"].median


def forms(scale: Scale) -> Iterator[Row]:
    """Each form of a convolution: relative difference from float32 products, and milliseconds."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from cervseg_jax.bench.timing import time_in_turns

    rng = np.random.default_rng(0)
    for factor, channels, filters, kernel_size, dilation, block in SHAPES:
        size = scale.size // factor
        shapes = ((2, size, size, channels), (kernel_size, kernel_size, channels, filters), (2, size, size, filters))
        arrays = [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]
        for precision in PRECISIONS:
            values = [array.astype(precision) for array in arrays]
            candidates = convolutions(dilation, block)
            with jax.default_matmul_precision("highest"):
                exact = both_ways(candidates["xla"])(*(value.astype(jnp.float32) for value in values))
            calls = {name: functools.partial(both_ways(form), *values) for name, form in candidates.items()}
            times = time_in_turns(
                {name: functools.partial(_wait, call) for name, call in calls.items()}, rounds=scale.rounds
            )
            for name, call in calls.items():
                differences = [_difference(a, b) for a, b in zip(call(), exact, strict=True)]
                layer = f"{size}x{size}, {kernel_size}x{kernel_size}, {channels} to {filters}"
                row = dict(zip(("output", "input gradient", "kernel gradient"), differences, strict=True))
                yield {"layer": layer, "precision": precision, "form": name, **row, "ms": 1e3 * times[name].median}


def convolutions(dilation: int, block: int) -> dict[str, Callable[..., Any]]:
    """Returns the forms of a "same" convolution of plain images by name."""
    from jax import lax

    from cervseg_jax.models.layers.conv.cpu import convolve_on_cpu
    from cervseg_jax.models.layers.conv.packed import convolve_packed
    from cervseg_jax.models.layers.packing import Layout, pack, unpack

    def xla(images: Any, kernel: Any) -> Any:
        return lax.conv_general_dilated(
            images, kernel, (1, 1), "SAME", rhs_dilation=(dilation,) * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def packed(images: Any, kernel: Any) -> Any:
        layout = Layout(block, (images.shape[-1],))
        return unpack(convolve_packed(pack(images, block), kernel, layout, dilation), Layout(block, kernel.shape[-1:]))

    return {"xla": xla, "packed": packed, "cpu": lambda images, kernel: convolve_on_cpu(images, kernel, dilation)}


def both_ways(convolve: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a compiled function that computes the output and both gradients."""
    import jax

    def function(images: Any, kernel: Any, cotangent: Any) -> Any:
        output, backward = jax.vjp(convolve, images, kernel)
        return output, *backward(cotangent)

    return jax.jit(function)


def _wait(call: Callable[[], Any]) -> None:
    import jax

    jax.block_until_ready(call())


def _difference(actual: Any, exact: Any) -> float:
    import numpy as np

    wide = [np.asarray(value, np.float64) for value in (actual, exact)]
    return float(np.abs(wide[0] - wide[1]).max() / np.abs(wide[1]).max())


def published(scale: Scale, batch_size: int, precision: str) -> Any:
    """Returns the published recipe at a scale."""
    from cervseg_jax.config import load_config

    settings = [f"model.image_size=[{scale.size}, {scale.size}]", f"model.args.levels={scale.levels}"]
    settings += [f"train.batch_size={batch_size}", f"runtime.precision={precision}"]
    return load_config(Path("clustered"), settings)


def steps(scale: Scale) -> Iterator[Row]:
    """Train step and prediction of the published network."""
    from cervseg_jax.bench.subject import prepare_subject
    from cervseg_jax.bench.timing import time_in_turns

    for batch_size in scale.batch_sizes:
        for precision in PRECISIONS:
            for backend in ("xla", "tpu"):
                subject = prepare_subject(published(scale, batch_size, precision), backend=backend)
                calls = {"step": subject.step, "forward": subject.forward}
                times = time_in_turns(calls, rounds=scale.rounds)
                rate = subject.cost.flops / times["step"].median
                yield {
                    "batch": batch_size,
                    "precision": precision,
                    "form": "packed" if backend == "tpu" else backend,
                    "step, ms": 1e3 * times["step"].median,
                    "of the product": rate / product_rate(precision, scale.rounds),
                    "MiB": subject.cost.temporary_bytes / 2**20,
                    "prediction, ms": 1e3 * times["forward"].median,
                    "compiled in s": subject.cost.compile_seconds,
                }


def torch_twin(scale: Scale) -> Iterator[Row]:
    """The same network in PyTorch, with TF32 products as XLA uses on GPUs."""
    from cervseg_jax.bench.baselines import BASELINES, installed_baselines
    from cervseg_jax.bench.timing import time_in_turns

    installed_baselines(["torch"])
    import torch  # pyright: ignore[reportMissingImports]

    torch.set_float32_matmul_precision("high")
    for batch_size in scale.batch_sizes:
        for precision in PRECISIONS:
            baseline = BASELINES["torch"](published(scale, batch_size, precision))
            times = time_in_turns({"step": baseline.step, "forward": baseline.forward}, rounds=scale.rounds)
            row = {"step, ms": 1e3 * times["step"].median, "prediction, ms": 1e3 * times["forward"].median}
            yield {"batch": batch_size, "precision": precision, **row}


def repeats(scale: Scale) -> Iterator[Row]:
    """Whether steps from a copy of the state give the same bits, as resuming a training needs."""
    import jax
    import numpy as np

    for precision in PRECISIONS:
        advance, state = _trainer(published(scale, 2, precision))
        copy = jax.device_get(state)
        ends = []
        for start in (copy, copy):
            state = jax.device_put(start)
            for _ in range(4):
                state, _ = advance(state)
            ends.append(jax.tree.leaves(jax.device_get(state)))
        differing = sum(not np.array_equal(a, b) for a, b in zip(*ends, strict=True))
        yield {"precision": precision, "arrays": len(ends[0]), "differing after 4 steps": differing}


def curves(scale: Scale) -> Iterator[Row]:
    """Loss over steps on one batch of noise."""
    for precision in PRECISIONS:
        for backend in ("xla", "tpu"):
            advance, state = _trainer(published(scale, 2, precision), backend)
            losses = []
            for _ in range(scale.steps):
                state, metrics = advance(state)
                losses.append(float(metrics.loss))
            shown = {f"step {step + 1}": losses[step] for step in range(0, scale.steps, max(1, scale.steps // 4))}
            yield {"precision": precision, "form": "packed" if backend == "tpu" else backend, **shown, "series": losses}


def _trainer(config: Any, backend: Any = None) -> tuple[Callable[[Any], tuple[Any, Any]], Any]:
    """Returns a function that makes a step on one batch, and the state before the first one."""
    import numpy as np

    from cervseg_jax.bench.subject import random_batch
    from cervseg_jax.engine.experiment import build_experiment

    experiment = build_experiment(config, backend=backend)
    step = experiment.lower_train_step().compile()
    batch, learning_rate = experiment.place_batch(random_batch(config)), np.float32(config.train.learning_rate)
    return lambda state: step(state, batch, learning_rate), experiment.initial_state()


def inference(scale: Scale) -> Iterator[Row]:
    """Segmentation of a large image with the built-in weights, read from memory."""
    import numpy as np

    import cervseg_jax
    from cervseg_jax.bench.timing import time_in_turns
    from cervseg_jax.curation.synthetic import draw_scene

    segmenter = cervseg_jax.load("pap", nucleus_px=30)
    scene = draw_scene(shape=(256, 256), seed=0).image
    image = np.tile(scene, (scale.side // 256, scale.side // 256, 1))
    calls = {"mask": lambda: segmenter(image).mask, "nuclei, measured": lambda: segmenter(image).table}
    for name, call in calls.items():
        seconds = time_in_turns({name: call}, rounds=min(3, scale.rounds))[name].median
        yield {"result": name, "megapixels/s": image.shape[0] * image.shape[1] / 1e6 / seconds}


def reading(scale: Scale) -> Iterator[Row]:
    """Images that the input pipeline reads in a second."""
    from cervseg_jax.bench.subject import input_batches
    from cervseg_jax.curation.dataset_folder import ensure_synthetic_dataset
    from cervseg_jax.data.pairs import find_pairs
    from cervseg_jax.data.samples import sample_cache, sample_loader
    from cervseg_jax.schema import SyntheticConfig

    config = published(scale, scale.batch_sizes[-1], "float32")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "drawn"
        drawn = SyntheticConfig(train=16, valid=1, test=1, size=(scale.size, scale.size), seed=0)
        ensure_synthetic_dataset(root, drawn)
        config = config.model_copy(update={"data": config.data.model_copy(update={"root": root})})
        pairs = find_pairs(config.data)[0]["train"]
        for name, load in (("files", sample_loader(config)), ("memory", sample_cache(config))):
            batches = input_batches(config, pairs, load)
            start = time.perf_counter()
            for _ in range(4 * scale.rounds):
                next(batches)
            num_images = 4 * scale.rounds * config.train.batch_size
            yield {"from": name, "images/s": num_images / (time.perf_counter() - start)}


def kernels(scale: Scale) -> Iterator[Row]:
    """The kernels that two steps spend most time in."""
    import jax

    for precision in PRECISIONS:
        advance, state = _trainer(published(scale, 2, precision))
        state, _ = advance(state)
        with tempfile.TemporaryDirectory() as folder:
            with jax.profiler.trace(folder, create_perfetto_trace=True):
                for _ in range(2):
                    state, _ = advance(state)
                jax.block_until_ready(state)
            (path,) = Path(folder).rglob("perfetto_trace.json.gz")
            durations = kernel_microseconds(json.loads(gzip.decompress(path.read_bytes())))
        total = sum(durations.values())
        for name, microseconds in durations.most_common(12):
            share = microseconds / total
            yield {"precision": precision, "kernel": name[:60], "ms a step": microseconds / 2e3, "share": share}


def kernel_microseconds(trace: Any) -> Counter[str]:
    """Returns the time of each kernel on a device, or of each event on the host where the trace has no device."""
    events = trace["traceEvents"] if isinstance(trace, dict) else trace
    named = [event for event in events if event.get("name") == "process_name"]
    devices = {event["pid"] for event in named if "/device:" in event["args"]["name"]}
    durations: Counter[str] = Counter()
    for event in events:
        if "dur" in event and (not devices or event["pid"] in devices):
            durations[event["name"]] += event["dur"]
    return durations


PARTS = (machine, forms, steps, torch_twin, repeats, curves, inference, kernels, reading)


if __name__ == "__main__":
    main(sys.argv[1:])
