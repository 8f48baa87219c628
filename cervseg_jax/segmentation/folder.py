"""Images on disk -> masks on disk, streaming."""

import functools
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from matplotlib.colors import to_rgb

from cervseg_jax.components import lookup
from cervseg_jax.console import Reporter
from cervseg_jax.data.decode import read_image
from cervseg_jax.data.pairs import list_images
from cervseg_jax.data.slides import Slide, is_slide
from cervseg_jax.errors import ConfigError, DataError, InterruptedRunError
from cervseg_jax.files import make_folder, read_text, refuse_bucket, write_json, write_text
from cervseg_jax.heads import Head
from cervseg_jax.runs.weights import load_network
from cervseg_jax.runtime.mesh import require_devices
from cervseg_jax.runtime.signals import stop_requests
from cervseg_jax.runtime.threads import num_threads
from cervseg_jax.schema import Config, PostprocessingConfig
from cervseg_jax.segmentation.maps import allocate, infer_predictor, predict_maps
from cervseg_jax.segmentation.nuclei import find_nuclei
from cervseg_jax.segmentation.outputs import (
    IMAGE_COLUMNS,
    OUTPUTS,
    WITHOUT_NUCLEI,
    Result,
    Settings,
    image_row,
    merge_coco,
    merge_tables,
    write_results,
)
from cervseg_jax.segmentation.tiling import ImageLike
from cervseg_jax.segmentation.tuning import load_postprocessing
from cervseg_jax.tables import csv_text

MUCH_LARGER = 4
"""Images whose side is so many times the network's lose what nuclei look like."""
DONE = ".done"
"""Folder with one line of `images.csv` for each image whose results are complete, and what they were made with."""
MANY_NUMBERS = 50_000_000
"""Maps of more numbers than this are finished before the next image."""


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
    others: Sequence[Path],
    outputs: Sequence[str],
    mpp: float | None,
    overwrite: bool,
    resume: bool,
    reporter: Reporter,
) -> tuple[int, int]:
    """Writes the chosen outputs for each image, in the image's own size, and tables for all.

    Files that cannot be read are listed in `failed.csv` and do not stop the rest.

    Args:
      run: a run folder with best weights.
      config: its config.
      inputs: images and folders of images.
      out: folder for the results.
      others: runs whose predictions are averaged with the first one's.
      outputs: keys of `OUTPUTS`.
      mpp: micrometers per pixel, for measurements.
      overwrite: replace earlier results.
      resume: go on with an earlier call; images whose results are complete are left alone.
      reporter: for progress.

    Returns:
      How many images were done and how many failed.

    Raises:
      ConfigError: if an input is missing, or `out` would touch the inputs or earlier results.
      CheckpointError: if the run has no usable weights.
      InterruptedRunError: on SIGTERM or Ctrl-C; finished images stay.
    """
    for name in outputs:
        lookup(OUTPUTS, name, key="--output")
    settings = Settings(mpp, _colors(config.infer.colors))
    jobs = plan_jobs(inputs)
    _require_safe_output(out, outputs, jobs, overwrite=overwrite or resume)
    require_devices(config.runtime)
    networks = [load_network(member / "best", precision=config.runtime.precision) for member in (run, *others)]
    predictor = infer_predictor(networks, config)
    rules = config.infer.postprocessing or load_postprocessing(run / "best")
    made_with = {
        "weights": [network.contract.weights_sha256 for network in networks],
        "outputs": sorted(outputs),
        "mpp": mpp,
        "postprocessing": rules.model_dump(),
        "infer": config.infer.model_dump(mode="json", exclude={"batch_size", "num_infer_images", "postprocessing"}),
    }
    todo = _open_results(out, outputs, jobs, made_with, resume=resume)
    failed: list[tuple[Job, str]] = []
    warned: list[Job] = []
    is_tiled = config.infer.tiled is not None
    # Whole images are read ahead, a batch and more; of large ones, one is enough.
    threads = num_threads(config.data)
    ahead = 1 if is_tiled else max(2 * config.infer.batch_size, threads)
    with (
        ThreadPoolExecutor(threads) as pool,
        reporter.progress("images", len(jobs), done=len(jobs) - len(todo)) as advance,
        tempfile.TemporaryDirectory(prefix=".work-", dir=out) as work,
        stop_requests() as stop,
    ):

        def leave_if_asked() -> None:
            if stop():
                raise InterruptedRunError(
                    f"{stop.signal_name}: stopped; what is finished stays, the same command with --resume goes on"
                )

        def images() -> Iterator[tuple[Job, ImageLike]]:
            for job, image in _in_order(pool, functools.partial(_read, is_tiled=is_tiled), todo, ahead=ahead):
                if isinstance(image, str):
                    failed.append((job, image))
                    reporter.warn(image)
                    advance()
                else:
                    if not is_tiled and _is_much_larger(image, predictor.image_size) and not warned:
                        warned.append(job)
                        reporter.warn(
                            f"{job.path}: is resized from {image.shape[0]}x{image.shape[1]} to the network's "
                            f"{'x'.join(map(str, predictor.image_size))}; --tiled keeps the scale"
                        )
                    yield job, image

        writer = ResultWriter(out, outputs, settings, config, predictor.heads, rules, Path(work))
        writes: list[Future[None]] = []
        for job, image, maps in predict_maps(
            predictor, config.infer.tiled, images(), work=Path(work), on_progress=leave_if_asked
        ):
            writes.append(pool.submit(writer.finish, job, image, maps))
            while len(writes) > (0 if maps.size > MANY_NUMBERS else ahead):
                writes.pop(0).result()
            advance()
        for write in writes:
            write.result()
    names = [job.name for job in jobs if (out / DONE / f"{job.name}.csv").is_file()]
    _write_tables(out, outputs, names, failed)
    return len(names), len(failed)


def _is_much_larger(image: ImageLike, image_size: tuple[int, int]) -> bool:
    return any(side >= MUCH_LARGER * own for side, own in zip(image.shape, image_size, strict=False))


class ResultWriter(NamedTuple):
    """What turns the maps of an image into files."""

    out: Path
    outputs: Sequence[str]
    settings: Settings
    config: Config
    heads: tuple[Head, ...]
    rules: PostprocessingConfig
    work: Path

    def finish(self, job: Job, image: ImageLike, maps: np.ndarray) -> None:
        """Writes everything about an image; the line that says so comes last."""
        nuclei = None
        if not WITHOUT_NUCLEI.issuperset(self.outputs):
            labels = allocate(maps.shape[:2], np.int32, self.work / f"labels-{job.name}.npy")
            nuclei = find_nuclei(maps, image, self.heads, self.rules, labels=labels)
        result = Result(job.name, job.path, image, maps, _cut(maps, self.config), nuclei)
        write_results(self.out, result, self.outputs, self.settings)
        write_text(self.out / DONE / f"{job.name}.csv", csv_text([], [image_row(result)]), durable=False)
        if isinstance(image, Slide):
            image.close()


def _open_results(
    out: Path, outputs: Sequence[str], jobs: Sequence[Job], made_with: Mapping[str, Any], *, resume: bool
) -> list[Job]:
    """Makes the folders, and returns the images that are still to be done.

    Raises:
      ConfigError: if results of other settings would be gone on with.
    """
    for name in (*outputs, DONE):
        make_folder(out / name)
    note = out / DONE / "made_with.json"
    wanted = json.loads(json.dumps(made_with))
    if resume and note.is_file():
        try:
            found = dict(json.loads(note.read_bytes()))
        except (ValueError, TypeError):
            raise ConfigError(f"--resume: {note} is damaged; make all anew with --overwrite") from None
        changed = ", ".join(key for key in wanted if found.get(key) != wanted[key])
        if changed:
            raise ConfigError(f"--resume: {out} was made with other settings ({changed}); choose another folder")
    write_json(note, wanted)
    if not resume:
        for job in jobs:
            (out / DONE / f"{job.name}.csv").unlink(missing_ok=True)
    return [job for job in jobs if not (out / DONE / f"{job.name}.csv").is_file()]


def _write_tables(out: Path, outputs: Sequence[str], names: Sequence[str], failed: Sequence[tuple[Job, str]]) -> None:
    """Writes what concerns all images: `images.csv`, `nuclei.csv`, `coco.json` and `failed.csv`."""
    rows = "".join(read_text(out / DONE / f"{name}.csv") for name in names)
    write_text(out / "images.csv", csv_text(IMAGE_COLUMNS, []) + rows)
    if "nuclei" in outputs:
        merge_tables(out, names)
    if "coco" in outputs:
        merge_coco(out, names)
    failed_csv = out / "failed.csv"
    if failed or failed_csv.exists():
        write_text(failed_csv, csv_text(["file", "reason"], [[job.path, reason] for job, reason in failed]))


def _cut(maps: np.ndarray, config: Config) -> np.ndarray:
    """Returns the mask, bool [h, w]."""
    probs, rule = maps[..., 0], config.infer.threshold_rule
    if rule == "fixed":
        return np.asarray(probs >= config.infer.threshold)
    levels = np.rint(np.asarray(probs) * 255).astype(np.uint8)
    kind = {"otsu": cv2.THRESH_OTSU, "triangle": cv2.THRESH_TRIANGLE}[rule]
    return cv2.threshold(levels, 0, 1, kind)[1] > 0


def _colors(names: tuple[str, str]) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    try:
        background, nucleus = ([round(255 * part) for part in to_rgb(name)] for name in names)
    except ValueError as error:
        raise ConfigError(f"infer.colors: {error}") from None
    return (background[0], background[1], background[2]), (nucleus[0], nucleus[1], nucleus[2])


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
        refuse_bucket(given)
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


def _read(job: Job, *, is_tiled: bool) -> Any:
    """Reads an image whole, or opens it as a slide where it is one or too large; returns what is wrong with it."""
    try:
        if is_slide(job.path):
            return Slide(job.path) if is_tiled else f"{job.path}: is a slide, too large to be resized; add --tiled"
        return read_image(job.path)
    except (DataError, OSError) as error:
        return str(error)


def _in_order(
    pool: ThreadPoolExecutor, work: Callable[[Job], Any], jobs: Iterable[Job], *, ahead: int
) -> Iterator[tuple[Job, Any]]:
    """Runs `work` in threads, at most `ahead` jobs before the one that is wanted, and yields results in order."""
    waiting: list[tuple[Job, Future]] = []
    for job in jobs:
        waiting.append((job, pool.submit(work, job)))
        if len(waiting) > ahead:
            first, result = waiting.pop(0)
            yield first, result.result()
    for job, result in waiting:
        yield job, result.result()
