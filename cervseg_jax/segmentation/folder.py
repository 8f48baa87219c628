"""Inference over files: streams images from disk through a segmenter and writes the results."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from cervseg_jax.components import lookup
from cervseg_jax.console import Reporter
from cervseg_jax.data.manifest import image_columns
from cervseg_jax.errors import DataError
from cervseg_jax.files import remove_stale_temporaries, write_text
from cervseg_jax.runs.folder import load_run_config
from cervseg_jax.runs.weights import read_contract
from cervseg_jax.runtime.mesh import require_devices
from cervseg_jax.runtime.signals import stop_requests
from cervseg_jax.runtime.threads import num_threads
from cervseg_jax.schema import Config
from cervseg_jax.segmentation.jobs import plan_jobs, require_safe_output, stated_pixel_sizes
from cervseg_jax.segmentation.ledger import Ledger
from cervseg_jax.segmentation.maps import tile_overlap
from cervseg_jax.segmentation.outputs import (
    DEFAULT_OUTPUTS,
    IMAGE_COLUMNS,
    OUTPUTS,
    merge_coco,
    merge_tables,
)
from cervseg_jax.segmentation.pipeline import FailedJob, Pipeline
from cervseg_jax.segmentation.result import parse_colors
from cervseg_jax.segmentation.segmenter import Segmenter, load_segmenter
from cervseg_jax.tables import csv_text


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


class InferCounts(NamedTuple):
    """How many images are complete, by this call and those before it, and how many failed."""

    num_done: int
    num_failed: int


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
    """
    out, outputs = request.out, request.outputs
    config = load_run_config(request.run, request.overrides)
    for name in outputs:
        lookup(OUTPUTS, name, key="--output")
    parse_colors(config.infer.colors)
    has_scale = read_contract(request.run / "best").scale is not None
    is_tiled = config.infer.tiled is not None or has_scale
    jobs = plan_jobs(request.images, with_slides=is_tiled, on_left_out=reporter.warn)
    require_safe_output(out, outputs, jobs, overwrite=request.overwrite or request.resume)
    require_devices(config.runtime)
    segmenter = load_segmenter((request.run, *request.members), config, mpp=request.mpp)
    if segmenter.tiled is not None and not has_scale:
        tile_overlap(segmenter.tiled, segmenter.predictor.image_size)  # fails before earlier results are removed
    pixel_sizes = stated_pixel_sizes(jobs, reporter) if request.mpp is None else {}
    remove_stale_temporaries(out)
    ledger = Ledger(out, outputs)
    todo = ledger.begin(
        jobs,
        _settings(request, config, segmenter, has_pixel_sizes=bool(pixel_sizes)),
        overwrite=request.overwrite,
        resume=request.resume,
        reporter=reporter,
    )
    with reporter.progress("images", len(jobs), done=len(jobs) - len(todo)) as advance, stop_requests() as stop:
        pipeline = Pipeline(
            segmenter,
            ledger,
            out=out,
            outputs=outputs,
            pixel_sizes=pixel_sizes,
            num_threads=num_threads(config.data),
            reporter=reporter,
            advance=advance,
            stop=stop,
        )
        failed = pipeline.process(todo)
    rows = {job.name: row for job in jobs if (row := ledger.read_row(job.name)) is not None}
    _write_tables(out, outputs, rows, failed, reporter)
    return InferCounts(len(rows), len(failed))


def _settings(request: InferRequest, config: Config, segmenter: Segmenter, *, has_pixel_sizes: bool) -> dict[str, Any]:
    """Returns everything that results depend on besides the images, as JSON values."""
    return {
        "weights": [network.contract.weights_sha256 for network in segmenter.networks],
        "outputs": sorted(request.outputs),
        "mpp": "of each file" if has_pixel_sizes else request.mpp,
        "bit_depth": segmenter.bit_depth,
        "postprocessing": segmenter.postprocessing.to_json(),
        "infer": config.infer.model_dump(
            mode="json", include={"tiled", "test_time_augmentation", "colors", "nucleus_px"}
        ),
    }


def _write_tables(
    out: Path,
    outputs: Sequence[str],
    rows: Mapping[str, Sequence[str]],
    failed: Sequence[FailedJob],
    reporter: Reporter,
) -> None:
    """Writes the files about all images: `images.csv`, `nuclei.csv`, `coco.json` and `failed.csv`."""
    write_text(out / "images.csv", csv_text(IMAGE_COLUMNS, rows.values()))
    if "nuclei" in outputs:
        files = [Path(row[IMAGE_COLUMNS.index("file")]) for row in rows.values()]
        try:
            columns = image_columns(files)
        except DataError as error:
            reporter.warn(f"nuclei.csv does not say which patient each nucleus is from: {error}")
            columns = [{} for _ in files]
        merge_tables(out, list(rows), columns)
    if "coco" in outputs:
        merge_coco(out, list(rows))
    failed_csv = out / "failed.csv"
    if failed or failed_csv.exists():
        write_text(failed_csv, csv_text(["file", "reason"], [[job.path, reason] for job, reason in failed]))
