"""Inference over files: streams images from disk through a segmenter and writes the results."""

import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from cervseg_jax.choices import BitDepth
from cervseg_jax.components import lookup
from cervseg_jax.console import Advance, Reporter
from cervseg_jax.errors import ConfigError, DataError, InterruptedRunError
from cervseg_jax.files import make_folder, read_text, write_json, write_text
from cervseg_jax.runs.folder import load_run_config
from cervseg_jax.runtime.mesh import require_devices
from cervseg_jax.runtime.signals import StopRequest, stop_requests
from cervseg_jax.runtime.threads import num_threads
from cervseg_jax.schema import Config
from cervseg_jax.segmentation.images import ImageLike, open_image
from cervseg_jax.segmentation.jobs import Job, plan_jobs, require_safe_output
from cervseg_jax.segmentation.outputs import (
    DEFAULT_OUTPUTS,
    IMAGE_COLUMNS,
    MASK_OUTPUTS,
    OUTPUTS,
    image_row,
    merge_coco,
    merge_tables,
    write_results,
)
from cervseg_jax.segmentation.result import Result, parse_colors
from cervseg_jax.segmentation.segmenter import Segmenter, load_segmenter
from cervseg_jax.tables import csv_text

MUCH_LARGER = 4
"""A whole image whose side is this many times the network's is worth a warning: nuclei shrink too far."""
DONE = ".done"
"""Folder with a row of `images.csv` for each image whose results are complete, and the settings of the call."""
MAX_PENDING_ELEMENTS = 50_000_000
"""The results of larger maps are written before the next image is predicted."""


@dataclass(frozen=True)
class InferRequest:
    """What to infer, with which runs, and what to write."""

    run: Path
    """Run folder with best weights."""
    images: tuple[Path, ...]
    """Image files and folders of images."""
    out: Path
    """Folder for the results."""
    overrides: tuple[str, ...] = ()
    """`section.key=value` items on the run's config."""
    members: tuple[Path, ...] = ()
    """Further runs, whose predictions are averaged with those of `run`."""
    outputs: tuple[str, ...] = DEFAULT_OUTPUTS
    """Keys of `OUTPUTS`."""
    mpp: float | None = None
    """Micrometers per pixel, for measurements."""
    overwrite: bool = False
    """Replace earlier results."""
    resume: bool = False
    """Continue an earlier call; images whose results are complete are skipped."""


class InferCounts(NamedTuple):
    """How many images were done, by this call and those before it, and how many could not be read."""

    num_done: int
    num_failed: int


def infer_files(request: InferRequest, *, reporter: Reporter) -> InferCounts:
    """Writes the chosen outputs for each image in the image's own size, and tables for all.

    Files that cannot be read are listed in `failed.csv`; the rest is processed.

    Args:
      request: inputs, runs and outputs.
      reporter: for progress and warnings.

    Returns:
      Counts of images.

    Raises:
      ConfigError: if an input is missing, or `out` would touch the inputs or earlier results.
      CheckpointError: if a run has no usable weights.
      InterruptedRunError: on SIGTERM or Ctrl-C; finished images are kept.
    """
    out, outputs = request.out, request.outputs
    config = load_run_config(request.run, request.overrides)
    for name in outputs:
        lookup(OUTPUTS, name, key="--output")
    parse_colors(config.infer.colors)
    jobs = plan_jobs(request.images)
    require_safe_output(out, outputs, jobs, overwrite=request.overwrite or request.resume)
    require_devices(config.runtime)
    segmenter = load_segmenter((request.run, *request.members), config, mpp=request.mpp)
    todo = _open_results(request, jobs, _settings(request, config, segmenter))
    with reporter.progress("images", len(jobs), done=len(jobs) - len(todo)) as advance, stop_requests() as stop:
        failed = _process(segmenter, todo, request, config, reporter=reporter, advance=advance, stop=stop)
    names = [job.name for job in jobs if (out / DONE / f"{job.name}.csv").is_file()]
    _write_tables(out, outputs, names, failed)
    return InferCounts(len(names), len(failed))


def _settings(request: InferRequest, config: Config, segmenter: Segmenter) -> dict[str, Any]:
    """Returns everything that results depend on besides the images, as JSON values."""
    return {
        "weights": [network.contract.weights_sha256 for network in segmenter.networks],
        "outputs": sorted(request.outputs),
        "mpp": request.mpp,
        "bit_depth": segmenter.bit_depth,
        "postprocessing": segmenter.postprocessing.to_json(),
        "infer": config.infer.model_dump(mode="json", include={"tiled", "test_time_augmentation", "colors"}),
    }


def _process(
    segmenter: Segmenter,
    jobs: Sequence[Job],
    request: InferRequest,
    config: Config,
    *,
    reporter: Reporter,
    advance: Advance,
    stop: StopRequest,
) -> list[tuple[Job, str]]:
    """Reads, predicts and writes images in a pipeline; returns the files that could not be read, with the reason."""
    failed: list[tuple[Job, str]] = []
    is_tiled = segmenter.tiled is not None
    # Whole images are read ahead by a batch and more; of tiled ones, which may be large, by one.
    threads = num_threads(config.data)
    ahead = 1 if is_tiled else max(2 * config.infer.batch_size, threads)

    def leave_if_asked() -> None:
        if stop():
            raise InterruptedRunError(
                f"{stop.signal_name}: stopped; finished images are kept, the same command with --resume continues"
            )

    def readable_images(pool: ThreadPoolExecutor) -> Iterator[tuple[Job, ImageLike]]:
        has_warned = is_tiled
        for job, image in _read_ahead(
            pool, functools.partial(_read, is_tiled=is_tiled, bit_depth=segmenter.bit_depth), jobs, ahead=ahead
        ):
            if isinstance(image, str):
                failed.append((job, image))
                reporter.warn(image)
                advance()
                continue
            if not has_warned and _is_much_larger(image, segmenter.predictor.image_size):
                has_warned = True
                reporter.warn(
                    f"{job.path}: is resized from {image.shape[0]}x{image.shape[1]} to the network's "
                    f"{'x'.join(map(str, segmenter.predictor.image_size))}; --tiled keeps the scale"
                )
            yield job, image

    with ThreadPoolExecutor(threads) as pool:
        writes: list[Future[None]] = []
        results = segmenter.predict(readable_images(pool), scratch=request.out, on_progress=leave_if_asked)
        for job, result in results:
            result.name, result.path = job.name, job.path
            writes.append(pool.submit(_write, request.out, result, request.outputs))
            while len(writes) > (0 if result.maps.size > MAX_PENDING_ELEMENTS else ahead):
                writes.pop(0).result()
                advance()  # an image counts when its files are written, or the time left would come out too short
        for write in writes:
            write.result()
    return failed


def _write(out: Path, result: Result, outputs: Sequence[str]) -> None:
    """Writes the files of an image, and last the row that marks it as complete."""
    write_results(out, result, outputs)
    row = image_row(result, with_nuclei=not MASK_OUTPUTS.issuperset(outputs))
    write_text(out / DONE / f"{result.name}.csv", csv_text([], [row]), durable=False)
    result.close()


def _is_much_larger(image: ImageLike, image_size: tuple[int, int]) -> bool:
    return any(side >= MUCH_LARGER * own for side, own in zip(image.shape, image_size, strict=False))


def _open_results(request: InferRequest, jobs: Sequence[Job], settings: Mapping[str, Any]) -> list[Job]:
    """Makes the folders, and returns the images that are still to be done.

    Raises:
      ConfigError: if `--resume` would mix results of different settings.
    """
    out = request.out
    for name in (*request.outputs, DONE):
        make_folder(out / name)
    note = out / DONE / "made_with.json"
    expected = json.loads(json.dumps(settings))
    if request.resume and note.is_file():
        try:
            actual = dict(json.loads(note.read_bytes()))
        except (ValueError, TypeError):
            raise ConfigError(f"--resume: {note} is damaged; start again with --overwrite") from None
        changed = ", ".join(key for key in expected if actual.get(key) != expected[key])
        if changed:
            raise ConfigError(f"--resume: {out} was made with other settings ({changed}); choose another folder")
    write_json(note, expected)
    if not request.resume:
        for job in jobs:
            (out / DONE / f"{job.name}.csv").unlink(missing_ok=True)
    return [job for job in jobs if not (out / DONE / f"{job.name}.csv").is_file()]


def _write_tables(out: Path, outputs: Sequence[str], names: Sequence[str], failed: Sequence[tuple[Job, str]]) -> None:
    """Writes the files about all images: `images.csv`, `nuclei.csv`, `coco.json` and `failed.csv`."""
    rows = "".join(read_text(out / DONE / f"{name}.csv") for name in names)
    write_text(out / "images.csv", csv_text(IMAGE_COLUMNS, []) + rows)
    if "nuclei" in outputs:
        merge_tables(out, names)
    if "coco" in outputs:
        merge_coco(out, names)
    failed_csv = out / "failed.csv"
    if failed or failed_csv.exists():
        write_text(failed_csv, csv_text(["file", "reason"], [[job.path, reason] for job, reason in failed]))


def _read(job: Job, *, is_tiled: bool, bit_depth: BitDepth) -> ImageLike | str:
    """Opens an image, or returns what is wrong with it."""
    try:
        return open_image(job.path, is_tiled=is_tiled, bit_depth=bit_depth)
    except (DataError, OSError) as error:
        return str(error)


def _read_ahead(
    pool: ThreadPoolExecutor, read: Callable[[Job], Any], jobs: Iterable[Job], *, ahead: int
) -> Iterator[tuple[Job, Any]]:
    """Calls `read` in threads, at most `ahead` jobs in advance, and yields jobs and results in order."""
    pending: list[tuple[Job, Future]] = []
    for job in jobs:
        pending.append((job, pool.submit(read, job)))
        if len(pending) > ahead:
            first, result = pending.pop(0)
            yield first, result.result()
    for job, result in pending:
        yield job, result.result()
