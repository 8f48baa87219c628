"""Training of a run from the initial weights or the newest checkpoint.

Everything that a resume needs is in the checkpoint: the state, and `Progress` as its metadata. The epochs themselves
are in `training.epochs`.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from cervseg_jax.console import Reporter
from cervseg_jax.data.pairs import Pair
from cervseg_jax.data.samples import sample_cache
from cervseg_jax.engine.cost import out_of_memory_advice
from cervseg_jax.engine.experiment import CompiledSteps, Experiment, build_experiment
from cervseg_jax.engine.plateau import PlateauState
from cervseg_jax.engine.state import TrainState, mix_weights
from cervseg_jax.engine.step import check_lr_multipliers
from cervseg_jax.errors import CervsegError, ConfigError
from cervseg_jax.runs.bucket import STATES, LocalRun, local_copy
from cervseg_jax.runs.checkpoint import Checkpoints
from cervseg_jax.runs.history import write_history
from cervseg_jax.runs.log import EventLog
from cervseg_jax.runs.progress import Phase, Progress, finite
from cervseg_jax.runs.weights import load_arrays, read_contract, tuned_files
from cervseg_jax.runtime.distributed import is_primary, sync_errors
from cervseg_jax.runtime.mesh import shard_arrays, state_sharding
from cervseg_jax.runtime.signals import StopRequest, StopVote
from cervseg_jax.schema import Config, Scale
from cervseg_jax.training.epochs import EpochLoop, end_reason
from cervseg_jax.training.meter import StepMeter, StepProfiler
from cervseg_jax.training.watchdog import InputWatchdog


@dataclass(frozen=True)
class TrainResult:
    """Outcome of a training."""

    progress: Progress
    reason: str
    """Why it ended."""
    kept: Mapping[str, bytes]
    """Tuned files of the initial weights, which the best weights have until others are tuned."""


class InitialWeights(NamedTuple):
    """What a run takes from `train.init_from`."""

    experiment: Experiment
    """Starts from these weights."""
    mixed_sha256: str | None
    """Hash of the weights where they are mixed into those that are stored."""
    kept: Mapping[str, bytes]
    """Tuned files that the new weights can use until others are tuned."""


def train(
    config: Config,
    run: LocalRun,
    pairs: Mapping[str, Sequence[Pair]],
    *,
    scale: Scale | None = None,
    reporter: Reporter,
    stop: StopRequest,
) -> TrainResult:
    """Trains until the last epoch or an early stop; resumes from the newest checkpoint if there is one.

    Args:
      config: the recipe.
      run: an open run folder; its changed files are published before each checkpoint, which may refer to them.
      pairs: files by split; "train" and "valid" are used, with `data.train_on_valid` "train" alone.
      scale: scale of the network's input, stored with the weights; None: whole images are resized.
      reporter: for messages.
      stop: polled after each step.

    Returns:
      The final progress.

    Raises:
      InterruptedRunError: if `stop` was set; the state is saved.
      DivergedError: if a loss or gradient is not finite; the last good state is kept.
      CheckpointError: if no checkpoint can be restored or saved.
      DataError: if a file has become unreadable.
    """
    if not pairs.get("valid") and not config.data.train_on_valid:
        raise ConfigError("data.root: training needs validation images (valid) to select the best epoch")
    log = EventLog(run.folder, trackers=config.train.trackers, is_open=is_primary())
    experiment = build_experiment(config)
    check_lr_multipliers(config.train.lr_multipliers, experiment.params)
    checkpoints = _open_checkpoints(config, run)
    try:
        initial = _open_initial(experiment, scale, run.folder / "best", is_resumed=not checkpoints.is_empty)
        experiment, kept = initial.experiment, initial.kept
        state, progress = _restore(experiment, checkpoints, initial.mixed_sha256, reporter=reporter, log=log)
        reason = end_reason(config, progress)
        if reason is None:
            with sync_errors():  # compilation may fail on some hosts only
                steps = _compile(experiment, reporter=reporter, log=log)
            with ExitStack() as stack:
                # Around all steps, as dispatch is asynchronous: errors surface when results are read.
                stack.enter_context(out_of_memory_advice(config, steps.cost))
                loop = EpochLoop(
                    experiment=experiment,
                    steps=steps,
                    run=run,
                    pairs=pairs,
                    load=sample_cache(config),
                    scale=scale,
                    evaluated=_evaluated(experiment),
                    kept=kept,
                    checkpoints=checkpoints,
                    reporter=reporter,
                    log=log,
                    stop_vote=StopVote(
                        stop, lambda: checkpoints.age_seconds >= 60 * config.train.save_minutes, experiment.mesh
                    ),
                    meter=StepMeter(log, every=config.train.log_steps, cost=steps.cost),
                    profiler=stack.enter_context(
                        StepProfiler(run.folder / "profile", num_steps=config.runtime.profile_steps)
                    ),
                    watchdog=stack.enter_context(InputWatchdog(reporter.warn)),
                )
                progress = loop.run_epochs(state, progress)
            reason = end_reason(config, progress) or "finished"
        checkpoints.wait()
    finally:
        log.close()
        checkpoints.close()
    if is_primary():
        write_history(run.folder, progress.history, metrics=config.train.metrics, best_epoch=progress.selected_epoch)
    return TrainResult(progress, reason, kept)


def _open_checkpoints(config: Config, run: LocalRun) -> Checkpoints:
    return Checkpoints(
        run.folder / STATES,
        address=None if run.address is None else run.address / STATES,
        keep=config.train.keep_checkpoints,
        keeps_forever=_kept_epochs(config.train.keep_every_epochs),
    )


def _kept_epochs(every: int | None) -> Callable[[dict[str, Any]], bool] | None:
    """Returns a predicate on checkpoint metadata: whether `train.keep_every_epochs` keeps the checkpoint."""
    if every is None:
        return None

    def is_kept(meta: dict[str, Any]) -> bool:
        progress = Progress.from_json(meta)
        return progress.phase == Phase.EPOCH_END and progress.epoch % every == 0

    return is_kept


def _open_initial(experiment: Experiment, scale: Scale | None, best: Path, *, is_resumed: bool) -> InitialWeights:
    """Reads `train.init_from`; when a run resumes, the weights only if they are mixed in.

    Args:
      experiment: as built.
      scale: scale of the network's input.
      best: folder of the best weights; it has the tuned files from an earlier call where the initial weights are gone.
      is_resumed: whether there are checkpoints.

    Raises:
      CheckpointError: if there are no such weights, or they are of another network.
      ConfigError: if they are mixed in and have other heads.
    """
    config = experiment.config
    source, share, heads = config.train.init_from, config.train.init_share, config.model.heads
    needs_weights = bool(share) or not is_resumed
    if source is None or not (needs_weights or is_primary()):  # tuned files are stored by process 0 alone
        return InitialWeights(experiment, None, {})
    try:
        with local_copy(source) as run:
            folder = run.folder / "best"
            contract = read_contract(folder)
            if share and contract.heads != heads:
                raise ConfigError(
                    f"train.init_share: needs initial weights with the same heads, got {list(contract.heads)}; set it "
                    "to 0"
                )
            if needs_weights:
                params, model_state = load_arrays(folder, experiment.params, experiment.model_state, heads=heads)
                experiment = replace(experiment, params=params, model_state=model_state)
            files = tuned_files(folder)
    except CervsegError:
        if needs_weights:
            raise
        return InitialWeights(experiment, None, tuned_files(best))
    sizes = [None if known is None else known.nucleus_px for known in (contract.scale, scale)]
    is_same_task = contract.heads == heads and sizes[0] == sizes[1]
    return InitialWeights(experiment, contract.weights_sha256 if share else None, files if is_same_task else {})


def _evaluated(experiment: Experiment) -> Callable[[TrainState], TrainState]:
    """Returns the function of a state that gives the one whose weights are validated and stored."""
    share = experiment.config.train.init_share
    if not share:
        return lambda state: state
    # Copies, as the first step takes the memory of the state that it is called with.
    weights = jax.tree.map(np.array, (experiment.params, experiment.model_state))
    initial = shard_arrays(weights, state_sharding(experiment.mesh, weights))
    return lambda state: mix_weights(state, *initial, share)


def _restore(
    experiment: Experiment, checkpoints: Checkpoints, initial_sha256: str | None, *, reporter: Reporter, log: EventLog
) -> tuple[TrainState, Progress]:
    """Returns the newest checkpoint, or the initial state.

    Raises:
      ConfigError: if the weights that are mixed in have changed since the run began.
    """
    state = experiment.initial_state()
    restored = checkpoints.restore_newest(state, warn=reporter.warn)
    if restored is None:
        return state, Progress(PlateauState(experiment.config.train.learning_rate), initial_sha256=initial_sha256)
    state, progress = restored.state, Progress.from_json(restored.meta)
    if initial_sha256 is not None and progress.initial_sha256 not in (None, initial_sha256):
        raise ConfigError(
            f"train.init_from: {experiment.config.train.init_from} has other weights than when this run began, and "
            "train.init_share mixes them in; use --fresh to start a new run beside it"
        )
    reporter.info(f"resumed from step {int(state.step)}, {progress.epoch} epochs finished")
    log.write("resumed", step=int(state.step), epoch=progress.epoch)
    return state, progress


def _compile(experiment: Experiment, *, reporter: Reporter, log: EventLog) -> CompiledSteps:
    """Compiles the steps and reports their cost."""
    reporter.info("compiling the train step ...")
    steps = experiment.compile()
    cost = steps.cost
    seconds = cost.trace_seconds + cost.compile_seconds
    reporter.info(
        f"compiled in {seconds:.1f} s; the step needs {cost.temporary_bytes / 2**20:.0f} MiB besides the weights"
    )
    log.write(
        "compiled",
        seconds=round(seconds, 2),
        temporary_bytes=cost.temporary_bytes,
        step_flops=finite(cost.flops),
    )
    return steps
