"""Training of a run from the initial weights or the newest checkpoint.

Everything that a resume needs is in the checkpoint: the state, and `Progress` as its metadata. The epochs themselves
are in `training.epochs`.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

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
from cervseg_jax.errors import ConfigError
from cervseg_jax.runs.bucket import STATES, LocalRun, local_copy
from cervseg_jax.runs.checkpoint import Checkpoints
from cervseg_jax.runs.history import write_history
from cervseg_jax.runs.log import EventLog
from cervseg_jax.runs.progress import Phase, Progress, finite
from cervseg_jax.runs.weights import load_arrays
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
    checkpoints = Checkpoints(
        run.folder / STATES,
        address=None if run.address is None else run.address / STATES,
        keep=config.train.keep_checkpoints,
        keeps_forever=_kept_epochs(config.train.keep_every_epochs),
    )
    try:
        experiment = _with_initial_weights(experiment, is_resumed=not checkpoints.is_empty)
        state, progress = _restore(experiment, checkpoints, reporter=reporter, log=log)
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
    return TrainResult(progress, reason)


def _kept_epochs(every: int | None) -> Callable[[dict[str, Any]], bool] | None:
    """Returns a predicate on checkpoint metadata: whether `train.keep_every_epochs` keeps the checkpoint."""
    if every is None:
        return None

    def is_kept(meta: dict[str, Any]) -> bool:
        progress = Progress.from_json(meta)
        return progress.phase == Phase.EPOCH_END and progress.epoch % every == 0

    return is_kept


def _with_initial_weights(experiment: Experiment, *, is_resumed: bool) -> Experiment:
    """Replaces the initial weights by those of `train.init_from`; when a run resumes, only if they are mixed in."""
    source, share = experiment.config.train.init_from, experiment.config.train.init_share
    if source is None or (is_resumed and not share):
        return experiment
    # New heads would be mixed with random weights.
    heads = None if share else experiment.config.model.heads
    with local_copy(source) as run:
        params, model_state = load_arrays(run.folder / "best", experiment.params, experiment.model_state, heads=heads)
    return replace(experiment, params=params, model_state=model_state)


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
    experiment: Experiment, checkpoints: Checkpoints, *, reporter: Reporter, log: EventLog
) -> tuple[TrainState, Progress]:
    """Returns the newest checkpoint, or the initial state."""
    state = experiment.initial_state()
    restored = checkpoints.restore_newest(state, warn=reporter.warn)
    if restored is None:
        return state, Progress(PlateauState(experiment.config.train.learning_rate))
    state, progress = restored.state, Progress.from_json(restored.meta)
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
