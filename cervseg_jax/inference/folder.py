"""Images on disk -> masks on disk, streaming."""

import functools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cervseg_jax.console import Reporter
from cervseg_jax.data.decode import read_image
from cervseg_jax.data.source import list_images
from cervseg_jax.errors import ConfigError, DataError
from cervseg_jax.files import csv_text, make_folder, write_png, write_text
from cervseg_jax.inference.predict import make_predict, predict_images
from cervseg_jax.plots import draw_overlay
from cervseg_jax.sections import Config
from cervseg_jax.training.sharding import make_mesh, require_devices
from cervseg_jax.weights import load_network

NUM_THREADS = 4
"""Threads that read and write files while the device computes."""


class Job(NamedTuple):
    """An input file and the name of its results."""

    path: Path
    name: str


def infer_files(
    run: Path,
    config: Config,
    inputs: Sequence[Path],
    out: Path,
    *,
    with_probabilities: bool,
    overwrite: bool,
    reporter: Reporter,
) -> tuple[int, int]:
    """Writes `masks`, `overlays` and on request `probabilities` for each image, in the image's own size.

    Files that cannot be read are listed in `failed.csv` and do not stop the rest.

    Args:
      run: a run folder with best weights.
      config: its config.
      inputs: images and folders of images.
      out: folder for the results.
      with_probabilities: also write 16-bit probability maps (65535 = certain).
      overwrite: replace earlier results.
      reporter: for progress.

    Returns:
      How many images were done and how many failed.

    Raises:
      ConfigError: if an input is missing, or `out` would touch the inputs or earlier results.
      CheckpointError: if the run has no usable weights.
    """
    jobs = plan_jobs(inputs)
    kinds = ("masks", "overlays", *(("probabilities",) if with_probabilities else ()))
    _require_safe_output(out, kinds, jobs, overwrite=overwrite)
    require_devices(config.runtime)
    network = load_network(run / "best", precision=config.runtime.precision)
    mesh = make_mesh(config.runtime.mesh, batch_size=config.infer.batch_size)
    batch_size = math.lcm(config.infer.batch_size, mesh.shape["data"])
    predict = functools.partial(make_predict(network.apply, mesh), network.params, network.model_state)
    for kind in kinds:
        make_folder(out / kind)

    good: list[tuple[Job, np.ndarray]] = []
    failed: list[tuple[Job, str]] = []
    with (
        ThreadPoolExecutor(NUM_THREADS) as pool,
        reporter.progress("images", len(jobs)) as advance,
    ):

        def images() -> Iterator[np.ndarray]:
            for job, image in _in_order(pool, _read, jobs, ahead=2 * batch_size):
                if isinstance(image, str):
                    failed.append((job, image))
                    reporter.warn(image)
                    advance()
                else:
                    good.append((job, image))
                    yield image

        done = 0
        writes: list[Future[None]] = []
        for probs in predict_images(predict, images(), image_size=network.contract.image_size, batch_size=batch_size):
            job, image = good.pop(0)
            writes.append(pool.submit(_write_results, out, kinds, job, image, probs, config.infer.threshold))
            if len(writes) > 2 * batch_size:
                writes.pop(0).result()
            done += 1
            advance()
        for write in writes:
            write.result()
    failed_csv = out / "failed.csv"
    if failed or failed_csv.exists():
        write_text(failed_csv, csv_text(["file", "reason"], [[job.path, reason] for job, reason in failed]))
    return done, len(failed)


def plan_jobs(inputs: Sequence[Path]) -> list[Job]:
    """Lists the images and gives each a name of its own.

    The name is the file's stem; where two share one, it is the whole file name with `_` for the dot, then numbered.

    Args:
      inputs: files and folders.

    Returns:
      Jobs in order, each file once.

    Raises:
      ConfigError: if an input is missing or a folder holds no images.
    """
    paths: list[Path] = []
    for given in inputs:
        if given.is_dir():
            found = list_images(given)
            if not found:
                raise ConfigError(f"--images: {given} holds no images")
            paths += found
        elif given.exists():
            paths.append(given)
        else:
            raise ConfigError(f"--images: no such file or folder: {given}")
    paths = list(dict.fromkeys(path.absolute() for path in paths))
    stems = Counter(path.stem for path in paths)
    jobs, taken = [], {stem for stem, count in stems.items() if count == 1}
    for path in paths:
        name = path.stem
        if stems[name] > 1:
            base = name = path.name.replace(".", "_")
            number = 2
            while name in taken:
                name = f"{base}_{number}"
                number += 1
            taken.add(name)
        jobs.append(Job(path, name))
    return jobs


def _require_safe_output(out: Path, kinds: Sequence[str], jobs: Sequence[Job], *, overwrite: bool) -> None:
    input_folders = {job.path.parent.resolve() for job in jobs}
    for folder in (out, *(out / kind for kind in kinds)):
        if folder.resolve() in input_folders:
            raise ConfigError(f"--out: {folder} is a folder of input images; results need a folder of their own")
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"--out: {folder} is a file")
    for kind in kinds:
        if not overwrite and (out / kind).is_dir() and any((out / kind).iterdir()):
            raise ConfigError(f"--out: {out / kind} holds results already; choose another folder, or add --overwrite")


def _read(job: Job) -> np.ndarray | str:
    try:
        return read_image(job.path)
    except DataError as error:
        return str(error)


def _write_results(
    out: Path, kinds: Sequence[str], job: Job, image: np.ndarray, probs: np.ndarray, threshold: float
) -> None:
    mask = (probs >= threshold).astype(np.uint8)
    pictures = {
        "masks": lambda: mask * 255,
        "overlays": lambda: draw_overlay(image, mask),
        "probabilities": lambda: np.round(probs * 65535).astype(np.uint16),
    }
    for kind in kinds:
        write_png(out / kind / f"{job.name}.png", pictures[kind]())


def _in_order(
    pool: ThreadPoolExecutor, work: Callable[[Job], np.ndarray | str], jobs: Iterable[Job], *, ahead: int
) -> Iterator[tuple[Job, np.ndarray | str]]:
    """Runs `work` in threads, at most `ahead` jobs before the one that is wanted, and yields results in order."""
    waiting: list[tuple[Job, Future]] = []
    for job in jobs:
        waiting.append((job, pool.submit(work, job)))
        if len(waiting) > ahead:
            first, result = waiting.pop(0)
            yield first, result.result()
    for job, result in waiting:
        yield job, result.result()
