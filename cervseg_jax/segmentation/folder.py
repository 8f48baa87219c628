"""Inference over files: streams images from disk through a segmenter and writes the results.

Several processes may share one output folder. They agree at the start on who does what; from then on each of them is on
its own, so that none waits for or ends with another. Whoever finds all images done writes the tables.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax

from cervseg_jax.console import Reporter
from cervseg_jax.errors import ConfigError
from cervseg_jax.files import make_folder, remove_stale_temporaries
from cervseg_jax.runs.folder import load_run_config
from cervseg_jax.runs.weights import read_contract
from cervseg_jax.runtime.distributed import (
    initialize_distributed,
    is_primary,
    leave_processes,
    require_equal,
    require_shared,
    sync_errors,
)
from cervseg_jax.runtime.mesh import require_devices
from cervseg_jax.runtime.processes import ProcessSpec
from cervseg_jax.runtime.signals import stop_requests
from cervseg_jax.runtime.threads import num_threads
from cervseg_jax.schema import Config
from cervseg_jax.segmentation.jobs import Job, plan_jobs, require_safe_output, stated_pixel_sizes
from cervseg_jax.segmentation.ledger import Ledger
from cervseg_jax.segmentation.maps import tile_overlap
from cervseg_jax.segmentation.merge import read_outcomes, write_tables
from cervseg_jax.segmentation.outputs import DEFAULT_OUTPUTS, require_outputs
from cervseg_jax.segmentation.pipeline import Pipeline
from cervseg_jax.segmentation.result import parse_colors
from cervseg_jax.segmentation.segmenter import Segmenter, load_segmenter
from cervseg_jax.segmentation.shares import Shard, Share, divide, of_shard
from cervseg_jax.segmentation.throughput import Throughput
from cervseg_jax.storage.address import Address
from cervseg_jax.storage.cached import MAX_REQUESTS


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
    """Micrometers per pixel, for measurements; None: as the files state it."""
    overwrite: bool = False
    """Remove the results of earlier calls."""
    resume: bool = False
    """Continue an earlier call; images whose results are complete are skipped, unless the image has changed since."""
    shard: Shard | None = None
    """The part of the images to do; None: all."""
    processes: ProcessSpec = ProcessSpec()
    """Processes that share the work."""


class InferCounts(NamedTuple):
    """How many images are complete, by this call and those before it, and how many failed."""

    num_done: int
    num_failed: int
    num_left: int
    """Images that other processes or shards have yet to do; the tables are written when there are none."""
    throughput: Throughput
    """Rates of this process."""
    process: int | None
    """Index of this process; None: it is the only one."""


class Call(NamedTuple):
    """What all processes know about a call before anything is written."""

    config: Config
    jobs: list[Job]
    """All images of the call, which decide the names of their results."""
    segmenter: Segmenter
    pixel_sizes: dict[Job, float]


def infer_files(request: InferRequest, *, reporter: Reporter) -> InferCounts:
    """Writes the chosen outputs for each image in the image's own size, and tables for all.

    Images that cannot be read, predicted or written are listed in `failed.csv`; the rest is processed.

    Args:
      request: inputs, runs and outputs.
      reporter: for progress and warnings.

    Returns:
      Counts of images.

    Raises:
      ConfigError: if an input is missing, `out` would touch the inputs or earlier results, or it cannot be written.
      CheckpointError: if a run has no usable weights.
      InterruptedRunError: on SIGTERM or Ctrl-C; finished images are kept.
      RemoteProcessError: if another process met an error before the first image.
    """
    initialize_distributed(request.processes)
    first_only = reporter if is_primary() else Reporter(is_silent=True)
    with sync_errors():
        call = prepare_call(request, first_only)
    share = begin_call(request, call, first_only)
    leave_processes()
    if not is_primary():
        reporter = Reporter(quiet=True)
    num_done = 0 if jax.process_count() > 1 else len(of_shard(call.jobs, request.shard)) - len(share.jobs)
    num_own_failed, throughput = process_share(request, call, share, num_done=num_done, reporter=reporter)
    outcomes = read_outcomes([request.out], call.jobs)
    if not outcomes.left:
        Ledger(request.out, request.outputs).remove_left_bands()
        write_tables(request.out, request.outputs, outcomes, reporter)
    num_failed = num_own_failed if outcomes.left else len(outcomes.failed)
    num_done = len(outcomes.done) if not outcomes.left else len(call.jobs) - len(outcomes.left) - num_own_failed
    process = jax.process_index() if jax.process_count() > 1 else None
    return InferCounts(num_done, num_failed, len(outcomes.left), throughput, process)


def process_share(
    request: InferRequest, call: Call, share: Share, *, num_done: int = 0, reporter: Reporter
) -> tuple[int, Throughput]:
    """Reads, predicts and writes images, without the tables.

    Args:
      request: the output folder, whose notes must have begun, and the outputs.
      call: weights and images.
      share: the images.
      num_done: images that count as done in the progress.
      reporter: for progress and warnings.

    Returns:
      How many images failed, and the rates.

    Raises:
      ConfigError: if nothing more can be written, such as on a full disk.
      InterruptedRunError: on SIGTERM or Ctrl-C; finished images are kept.
    """
    total = num_done + len(share.jobs)
    with reporter.progress("images", total, done=num_done) as advance, stop_requests() as stop:
        pipeline = Pipeline(
            call.segmenter,
            Ledger(request.out, request.outputs),
            out=request.out,
            outputs=request.outputs,
            pixel_sizes=call.pixel_sizes,
            num_threads=num_threads(call.config.data),
            num_requests=MAX_REQUESTS if isinstance(request.out, Address) else 0,
            reporter=reporter,
            advance=advance,
            stop=stop,
        )
        failed = pipeline.process(share)
    return len(failed), pipeline.throughput


def prepare_call(request: InferRequest, reporter: Reporter) -> Call:
    """Loads weights and lists the images; nothing is written.

    Raises:
      ConfigError: as `infer_files`.
      CheckpointError: as `infer_files`.
    """
    config = load_run_config(request.run, request.overrides)
    require_outputs(request.outputs, key="--output")
    parse_colors(config.infer.colors)
    has_scale = read_contract(request.run / "best").scale is not None
    is_tiled = config.infer.tiled is not None or has_scale
    jobs = plan_jobs(request.images, with_slides=is_tiled, on_left_out=reporter.warn)
    # A shard may find the results of others; `begin_call` looks for its own.
    may_hold_results = request.overwrite or request.resume or request.shard is not None
    require_safe_output(request.out, request.outputs, jobs, overwrite=may_hold_results)
    require_devices(config.runtime)
    segmenter = load_segmenter((request.run, *request.members), config, mpp=request.mpp)
    if segmenter.tiled is not None and not has_scale:
        tile_overlap(segmenter.tiled, segmenter.predictor.image_size)  # fails before earlier results are removed
    pixel_sizes = stated_pixel_sizes(jobs, reporter) if request.mpp is None else {}
    return Call(config, jobs, segmenter, pixel_sizes)


def begin_call(request: InferRequest, call: Call, reporter: Reporter) -> Share:
    """Removes results that this call does not keep, and divides the images over the processes. Collective.

    Raises:
      ConfigError: as `infer_files`.
    """
    ledger = Ledger(request.out, request.outputs)
    settings = _settings(request, call)
    require_equal("the command or the images", f"{settings} {request.shard} {request.out.absolute()} {call.jobs}")
    jobs = of_shard(call.jobs, request.shard)
    todo: list[Job] = []
    with sync_errors():
        make_folder(request.out)
    require_shared(request.out, option="the output folder (--out)")
    with sync_errors():
        remove_stale_temporaries(request.out)
        if not is_primary():
            ledger.require_writable()
        else:
            if request.shard is not None and not (request.overwrite or request.resume) and ledger.has_results_of(jobs):
                raise ConfigError(
                    f"--out: {request.out} holds results of this shard already; add --resume to continue an "
                    "interrupted call, or --overwrite"
                )
            todo = ledger.begin(
                call.jobs,
                settings,
                share=None if request.shard is None else jobs,
                overwrite=request.overwrite,
                resume=request.resume,
                reporter=reporter,
            )
    return divide(jobs, todo, is_tiled=call.segmenter.is_tiled, index=jax.process_index(), count=jax.process_count())


def _settings(request: InferRequest, call: Call) -> dict[str, Any]:
    """Returns everything that results depend on besides the images, as JSON values."""
    segmenter = call.segmenter
    return {
        "weights": [network.contract.weights_sha256 for network in segmenter.networks],
        "outputs": sorted(request.outputs),
        "mpp": "of each file" if call.pixel_sizes else request.mpp,
        "bit_depth": segmenter.bit_depth,
        "postprocessing": segmenter.postprocessing.to_json(),
        "infer": call.config.infer.model_dump(
            mode="json", include={"tiled", "test_time_augmentation", "colors", "nucleus_px"}
        ),
        **({"min_probability": segmenter.min_probability} if segmenter.min_probability else {}),
    }
