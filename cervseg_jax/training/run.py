"""Training from a config to tuned weights: data checks, run folders and seeds around the training loop."""

import functools
import os
import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cervseg_jax.config import dump_config, load_config
from cervseg_jax.console import Reporter
from cervseg_jax.data.checks import CheckedPairs, ReadFiles, bit_depth_warning, common_bit_depth
from cervseg_jax.data.pairs import Pair
from cervseg_jax.errors import ConfigError
from cervseg_jax.files import remove_stale_temporaries, write_bytes
from cervseg_jax.runs.bucket import LocalRun, local_copy
from cervseg_jax.runs.progress import Progress
from cervseg_jax.runtime.processes import ProcessSpec
from cervseg_jax.schema import Config, Scale
from cervseg_jax.training.data import check_instances, generate_data, read_data, resolve_nucleus_px, scale_data


@dataclass(frozen=True)
class TrainRequest:
    """Arguments of a training."""

    config: Path
    """A config file, or the name of a packaged recipe."""
    run_dir: Path | None = None
    """Run folder; None: `runs/<name of the config>`."""
    overrides: tuple[str, ...] = ()
    """`section.key=value` items."""
    processes: ProcessSpec = ProcessSpec(None, None, None, False)
    num_seeds: int | None = None
    """Number of runs with successive seeds, in `seed_0`, `seed_1` ...; None: one run in the folder itself."""
    fresh: bool = False
    """If the run folder exists, start a new run in a numbered folder beside it."""
    allow_changes: bool = False
    """Continue a run although its config or data have changed."""
    known: ReadFiles | None = None
    """Files that a plan has read; they are not read again."""


class TrainedRun(NamedTuple):
    """A finished training; usable as a path."""

    folder: Path
    """Run folder, or its address in a bucket."""
    progress: Progress
    """History, learning rate and best epoch."""
    reason: str
    """Why the training ended."""

    def __fspath__(self) -> str:
        """Returns the folder."""
        return str(self.folder)


class TrainingData(NamedTuple):
    """The files of a training."""

    checked: Mapping[str, CheckedPairs]
    """Files by split."""
    pairs: Mapping[str, Sequence[Pair]]
    """As the network sees them: scaled, and windows of validation images, with `data.nucleus_px`."""
    scale: Scale | None
    """Scale of the network's input; None: whole images are resized."""


def train_runs(request: TrainRequest, *, reporter: Reporter) -> list[TrainedRun]:
    """Trains as requested; continues an unfinished training of the run folder.

    Args:
      request: the arguments.
      reporter: for messages of the primary process.

    Returns:
      The runs, one per seed.

    Raises:
      CervsegError: as `load_config`, `check_pairs`, `open_run_folder` and `train`.
    """
    config = load_config(request.config, request.overrides)
    from cervseg_jax.runs.folder import choose_run_folder, data_csv, next_command, seed_name
    from cervseg_jax.runtime.distributed import initialize_distributed, is_primary, require_equal, sync_errors
    from cervseg_jax.runtime.mesh import require_devices, train_mesh

    initialize_distributed(request.processes)
    if not is_primary():
        reporter = Reporter(is_silent=True)
    with sync_errors():
        require_devices(config.runtime)
        mesh = train_mesh(config)
    require_equal("the config", dump_config(config))
    with sync_errors():
        home = choose_run_folder(request.config, request.run_dir, fresh=request.fresh)
    require_equal("the run folder", str(home))
    with ExitStack() as stack:
        with sync_errors():
            run = stack.enter_context(local_copy(home, is_primary=is_primary()))
            if request.num_seeds and (run.folder / "config.yaml").exists():
                raise ConfigError(
                    f"{run.folder}: is the run of a single training; --seeds needs another --run-dir, or --fresh"
                )
        reporter.info(_device_line())
        reporter.info(f"mesh: {dict(mesh.shape)}, precision: {config.runtime.precision}")
        for turn in (True, False):  # if hosts share a disk, process 0 generates the data and the others find them
            with sync_errors():
                if is_primary() == turn:
                    generate_data(config, reporter)
        with sync_errors():
            pairs = read_data(config, reporter, known=request.known)
        bits = [item.bits for checked in pairs.values() for item in checked.stats]
        depth = common_bit_depth(bits, config.data.bit_depth)
        warning = bit_depth_warning(bits, depth, option="--set data.bit_depth=")
        if warning:
            reporter.warn(warning)
        with sync_errors():
            config = resolve_nucleus_px(config)
            data = TrainingData(pairs, *scale_data(config, pairs, reporter))
        config = config.model_copy(update={"data": config.data.model_copy(update={"bit_depth": depth})})
        stats = {split: checked.stats for split, checked in pairs.items()}
        require_equal("the list of data files with their checksums", data_csv(stats))
        train_one = functools.partial(_train_one, allow_changes=request.allow_changes, reporter=reporter)
        if request.num_seeds is None:
            runs = [train_one(config, run, data)._replace(folder=home)]
        else:
            runs = []
            for seed in range(config.train.seed, config.train.seed + request.num_seeds):
                name = seed_name(seed)
                member_config = config.model_copy(update={"train": config.train.model_copy(update={"seed": seed})})
                runs.append(train_one(member_config, run.subrun(name), data)._replace(folder=home / name))
            losses = [trained.progress.best.val_loss for trained in runs if trained.progress.selected_epoch]
            if losses:
                spread = f" ± {statistics.stdev(losses):.4f}" if len(losses) > 1 else ""
                mean = statistics.mean(losses)
                reporter.info(f"{len(losses)} seeds: val_loss {mean:.4f}{spread} (mean, standard deviation)")
        reporter.info(f"next: cervseg-jax {next_command(run.display_path(run.folder), pairs)}")
    return runs


def _train_one(
    config: Config, run: LocalRun, data: TrainingData, *, allow_changes: bool, reporter: Reporter
) -> TrainedRun:
    """Trains in one run folder, and tunes the post-processing of new best weights."""
    from cervseg_jax.runs.folder import locked, open_run_folder, record_data
    from cervseg_jax.runs.trackers import viewing_advice
    from cervseg_jax.runs.weights import CONFIDENCE_FILE, tuned_files
    from cervseg_jax.runtime.distributed import allgather_json, is_primary, sync_errors
    from cervseg_jax.runtime.signals import stop_requests
    from cervseg_jax.training.loop import train

    folder = run.folder
    with ExitStack() as stack:
        with sync_errors():
            if is_primary():
                stack.enter_context(locked(folder))
                for place in (folder, folder / "previews"):
                    remove_stale_temporaries(place)
                open_run_folder(folder, config, allow_changes=allow_changes)
                stats = {split: checked.stats for split, checked in data.checked.items()}
                record_data(folder, stats, allow_changes=allow_changes)
                run.publish()  # fails early if the bucket is not writable
            check_instances(config, data.pairs["train"], reporter)
        reporter.info(f"run folder: {run.display_path(folder)}; config.yaml there has all settings")
        for advice in viewing_advice(config.train.trackers, run.display_path(folder)):
            reporter.info(advice)
        stop = stack.enter_context(stop_requests())
        result = train(config, run, data.pairs, scale=data.scale, reporter=reporter, stop=stop)
    # New best weights have no tuned files but those of the initial weights.
    files = tuned_files(folder / "best")
    is_tuned = any(files[name] != result.kept.get(name) for name in files.keys() - {CONFIDENCE_FILE})
    valid = data.checked["valid"].pairs if "valid" in data.checked else []
    is_labelled = any(pair.instances_path for pair in valid)
    if is_labelled:
        states = allgather_json([is_tuned, _read_contract(folder)])  # a run in a bucket is a folder of process 0 alone
        is_shared = all(contract == states[0][1] for _, contract in states)
        if not states[0][0] and (is_primary() or is_shared):
            from cervseg_jax.segmentation.tuning import tune_run

            tune_run(folder, config, valid, is_shared=is_shared, reporter=reporter)
    elif result.kept:
        reporter.info(
            f"post-processing and confidence of nuclei: as of {config.train.init_from}, as no validation images have "
            "instance labels"
        )
    if is_primary() and CONFIDENCE_FILE in result.kept and not (folder / "best" / CONFIDENCE_FILE).is_file():
        write_bytes(folder / "best" / CONFIDENCE_FILE, result.kept[CONFIDENCE_FILE])  # too few nuclei to fit one
    best = result.progress.best
    is_selected = result.progress.selected_epoch > 0
    chosen = (
        f"best epoch {best.epoch} with val_loss {best.val_loss:.4f}" if is_selected else "the last weights are kept"
    )
    reporter.info(f"finished: {result.reason}; {chosen}")
    shown = run.display_path(folder / "previews" / f"epoch_{best.epoch:04d}")
    reporter.info(f"masks of {'validation' if is_selected else 'training'} images: {shown}")
    return TrainedRun(folder, result.progress, result.reason)


def _read_contract(folder: Path) -> str:
    """Returns what identifies the best weights that this process sees; "" if it sees none."""
    path = folder / "best" / "contract.json"
    return path.read_text() if path.is_file() else ""


def _device_line() -> str:
    import jax

    devices = jax.devices()
    hosts = f" of {jax.process_count()} processes" if jax.process_count() > 1 else ""
    kind = f"{devices[0].device_kind} ({devices[0].platform})"
    return f"devices: {len(devices)} x {kind}{hosts}, {os.cpu_count()} CPU cores"
