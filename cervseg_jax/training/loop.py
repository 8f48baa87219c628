"""The training loop: everything that touches disk, clock and signals around the pure steps.

The order within an epoch is fixed: train, evaluate, history, best weights, checkpoint, curves, previews. All that a
resume needs is in the checkpoint: the state, and `Progress` beside it.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cervseg_jax.console import Reporter
from cervseg_jax.data.batch import Batch
from cervseg_jax.data.pipeline import eval_batches, steps_per_epoch, train_batches
from cervseg_jax.data.samples import SampleCache, sample_cache
from cervseg_jax.data.source import Pair
from cervseg_jax.engine.experiment import Compiled, compile_run, configured_network, configured_optimizer
from cervseg_jax.engine.plateau import PlateauState, stops_early, update_best, update_plateau
from cervseg_jax.engine.schedule import lr_multiplier
from cervseg_jax.engine.scores import Scores, evaluate
from cervseg_jax.engine.state import TrainState, create_state
from cervseg_jax.engine.step import StepMetrics, check_lr_multipliers
from cervseg_jax.errors import ConfigError, DivergedError, InterruptedRunError
from cervseg_jax.models import backend_for
from cervseg_jax.runs.bucket import STATES, local_copy
from cervseg_jax.runs.checkpoint import Checkpoints
from cervseg_jax.runs.folder import EventLog
from cervseg_jax.runs.history import write_history
from cervseg_jax.runs.progress import Progress, finite
from cervseg_jax.runs.weights import load_arrays, save_weights
from cervseg_jax.runtime.distributed import is_primary
from cervseg_jax.runtime.mesh import place, state_sharding, to_host, train_mesh
from cervseg_jax.runtime.signals import StopRequest, StopVote, Vote
from cervseg_jax.schema import Config
from cervseg_jax.training.meter import StepMeter, StepProfiler, out_of_memory_advice
from cervseg_jax.training.preview import write_previews
from cervseg_jax.training.watchdog import InputWatchdog


@dataclass(frozen=True)
class TrainResult:
    """How a training ended."""

    progress: Progress
    reason: str
    """Why it ended, in words."""


def train(
    config: Config,
    folder: Path,
    pairs: Mapping[str, Sequence[Pair]],
    *,
    reporter: Reporter,
    stop: StopRequest,
    publish: Callable[[], None] = lambda: None,
) -> TrainResult:
    """Trains to the end, or continues what an earlier call in this folder left.

    Args:
      config: the recipe.
      folder: an open run folder.
      pairs: the files, by split; "train" and "valid" are used.
      reporter: for messages.
      stop: polled after each step.
      publish: called by each process before a state is saved, so that what the state knows of is safe first.

    Returns:
      The final progress.

    Raises:
      InterruptedRunError: if `stop` was set; the state is saved.
      DivergedError: if a loss or gradient is not finite; the last good state is kept.
      CheckpointError: if no state can be restored, or none saved.
      DataError: if a file has become unreadable.
    """
    if not pairs.get("valid"):
        raise ConfigError("data.root: training needs validation images (valid), to choose the best epoch by")
    log = EventLog(folder, trackers=config.train.trackers, is_open=is_primary())
    optimizer = configured_optimizer(config)
    mesh = train_mesh(config)
    apply, params, model_state = configured_network(config, backend=backend_for(mesh))
    check_lr_multipliers(config.train.lr_multipliers, params)
    every = config.train.keep_every_epochs
    checkpoints = Checkpoints(
        folder / STATES,
        keep=config.train.keep_checkpoints,
        # The number of an epoch's last state is steps plus epochs.
        keep_multiples_of=every and every * (steps_per_epoch(config, len(pairs["train"])) + 1),
    )
    try:
        if config.train.init_from is not None and checkpoints.is_empty:
            with local_copy(config.train.init_from) as start:
                params, model_state = load_arrays(start.folder / "best", params, model_state)
        state = create_state(params, model_state, optimizer, with_ema=config.train.ema_decay is not None)
        state = place(state, state_sharding(mesh, state))
        progress = Progress(PlateauState(config.train.learning_rate))
        restored = checkpoints.restore_newest(state, warn=reporter.warn)
        if restored is not None:
            state, progress = restored.state, Progress.from_json(restored.meta)
            reporter.info(f"resumed from step {int(state.step)}, {progress.epoch} epochs finished")
            log.write("resumed", step=int(state.step), epoch=progress.epoch)
        reason = _end_reason(config, progress)
        if reason is None:
            compiled = compile_run(config, apply, optimizer, state, mesh, reporter=reporter, log=log)
            stop_vote = StopVote(stop, lambda: checkpoints.age_seconds >= 60 * config.train.save_minutes)
            meter = StepMeter(log, every=config.train.log_steps, facts=compiled.facts)
            with (
                StepProfiler(folder / "profile", num_steps=config.runtime.profile_steps) as profiler,
                # Around all of it: steps run behind the program's back, their errors come when results are read.
                out_of_memory_advice(config, compiled.facts),
                InputWatchdog(reporter.warn) as watch,
            ):
                run = _Run(
                    config=config,
                    folder=folder,
                    pairs=pairs,
                    load=sample_cache(config),
                    compiled=compiled,
                    checkpoints=checkpoints,
                    reporter=reporter,
                    stop_vote=stop_vote,
                    log=log,
                    meter=meter,
                    profiler=profiler,
                    watch=watch,
                    publish=publish,
                )
                state, progress = run.epochs(state, progress)
            reason = _end_reason(config, progress) or "finished"
        checkpoints.wait()
    finally:
        log.close()
        checkpoints.close()
    if is_primary():
        write_history(folder, progress.history, metrics=config.train.metrics, best_epoch=progress.best.epoch)
    return TrainResult(progress, reason)


def _end_reason(config: Config, progress: Progress) -> str | None:
    if progress.epoch >= config.train.epochs:
        return f"all {config.train.epochs} epochs are done"
    if progress.epoch and stops_early(progress.best, progress.epoch, config.train.early_stop_patience):
        return f"val_loss has not improved for {config.train.early_stop_patience} epochs"
    return None


@dataclass(frozen=True)
class _Run:
    """What stays the same while the epochs go by."""

    config: Config
    folder: Path
    pairs: Mapping[str, Sequence[Pair]]
    load: SampleCache
    compiled: Compiled
    checkpoints: Checkpoints
    reporter: Reporter
    stop_vote: StopVote
    log: EventLog
    meter: StepMeter
    profiler: StepProfiler
    watch: InputWatchdog
    publish: Callable[[], None]

    def epochs(self, state: TrainState, progress: Progress) -> tuple[TrainState, Progress]:
        """Trains until the last epoch or an early stop."""
        batches = train_batches(
            self.config,
            self.pairs["train"],
            start_step=int(state.step),
            load=self.load,
            images=self.compiled.images,
        )
        while _end_reason(self.config, progress) is None:
            start = time.monotonic()
            state, waited = self._train_epoch(state, progress, batches)
            validation = self._validate(state, progress)
            seconds = time.monotonic() - start
            progress = self._advance(state, progress, validation, seconds=seconds, waited=waited)
            self._keep(state, progress)
        return state, progress

    def _train_epoch(self, state: TrainState, progress: Progress, batches: Iterator[Batch]) -> tuple[TrainState, float]:
        """Makes the epoch's remaining steps; returns the state and the seconds spent waiting for input."""
        num_steps = steps_per_epoch(self.config, len(self.pairs["train"]))
        done = int(state.step) - (progress.history[-1]["step"] if progress.history else 0)
        waited, pending = 0.0, None
        title = f"epoch {progress.epoch + 1}/{self.config.train.epochs}"
        with self.reporter.progress(title, num_steps, done=done) as advance:
            for number in range(done, num_steps):
                batch, wait = self.watch.next(batches)
                waited += wait
                rate = self._rate(progress, progress.epoch * num_steps + number)
                self.meter.step(progress.epoch * num_steps + number, rate=rate, wait=wait)
                state, metrics = self.compiled.train_step(state, self._placed(batch), np.float32(rate))
                # The step before this one is read while this one runs.
                self._record(progress, pending)
                self.profiler.step(metrics)
                pending = metrics
                advance(f"loss {progress.scores.loss:.4f}")
                if self.stop_vote.global_vote == Vote.STOP:
                    break
                if self.stop_vote.global_vote == Vote.SAVE:
                    self._record(progress, pending)
                    pending = None
                    self._save(state, progress)
        self._record(progress, pending)
        self._leave_if_asked(state, progress)
        return state, waited

    def _rate(self, progress: Progress, step: int) -> float:
        """The learning rate of the update after `step` others."""
        train = self.config.train
        return progress.plateau.learning_rate * lr_multiplier(
            step,
            warmup_steps=train.warmup_steps,
            total_steps=train.epochs * steps_per_epoch(self.config, len(self.pairs["train"])),
            final_factor=train.cosine.final_factor if train.cosine else None,
        )

    def _placed(self, batch: Batch) -> Batch:
        """Puts this process' share of a batch on its devices."""
        batch = replace(batch, vote=np.full_like(batch.vote, self.stop_vote.local_vote))
        first, batch_size = self.compiled.images.start, self.config.train.batch_size
        return place(batch, self.compiled.batch_sharding, first=first, batch_size=batch_size)

    def _record(self, progress: Progress, metrics: StepMetrics | None) -> None:
        if metrics is None:
            return
        loss = progress.scores.add(metrics)
        self.stop_vote.observe(int(metrics.vote))
        self.meter.result(metrics)
        norm = float(metrics.gradient_norm)
        # An infinite gradient that is clipped does no harm.
        bad_gradient = math.isnan(norm) or (math.isinf(norm) and self.config.train.clip_value is None)
        if not math.isfinite(loss) or bad_gradient:
            what = f"loss became {loss}" if not math.isfinite(loss) else f"gradient became {norm}"
            files = sorted({self.pairs["train"][index].image_path.name for index in np.asarray(metrics.image_id)})
            self.log.write("diverged", loss=str(loss), gradient_norm=str(norm), files=files)
            raise DivergedError(
                f"the {what} in epoch {progress.epoch + 1}, with the images {', '.join(files)}; the last "
                "saved state is kept; try a lower train.learning_rate, train.clip_value, or input_range: unit"
            )

    def _validate(self, state: TrainState, progress: Progress) -> Scores:
        pairs, batch_size = self.pairs["valid"], self.config.train.batch_size
        batches = eval_batches(self.config, pairs, batch_size=batch_size, load=self.load, images=self.compiled.images)

        def score(batch: Batch) -> StepMetrics:
            metrics = self.compiled.eval_step(state, self._placed(batch))
            self.stop_vote.observe(int(metrics.vote))
            return metrics

        with self.reporter.progress("validation", math.ceil(len(pairs) / batch_size)) as advance:
            scores = evaluate(
                score,
                self.watch.iterate(batches),
                on_progress=advance,
                stop=lambda: self.stop_vote.global_vote == Vote.STOP,
            )
        if scores is None:
            self._leave_if_asked(state, progress)
        assert scores is not None  # noqa: S101 (for the type checker)
        return scores

    def _advance(
        self, state: TrainState, progress: Progress, validation: Scores, *, seconds: float, waited: float
    ) -> Progress:
        """Closes the epoch: history, learning rate, best epoch."""
        training, valid = progress.scores.summary(), validation.summary()
        val_loss = valid["loss"]
        if not math.isfinite(val_loss):
            raise DivergedError(
                f"val_loss became {val_loss} in epoch {progress.epoch + 1}; the last saved state is kept"
            )
        row: dict[str, Any] = {"epoch": progress.epoch + 1, "step": int(state.step)}
        for name in ("loss", *self.config.train.metrics):
            row |= {name: finite(training[name]), f"val_{name}": finite(valid[name])}
        row |= {
            "learning_rate": self._rate(progress, int(state.step) - 1),
            "seconds": seconds,
            "images_per_second": progress.scores.num_images / seconds,
            "input_wait": waited,
        }
        rules = self.config.train.plateau
        plateau = update_plateau(progress.plateau, val_loss, **rules.model_dump()) if rules else progress.plateau
        best = update_best(progress.best, val_loss, progress.epoch + 1)
        return Progress(plateau, best, [*progress.history, row], Scores())

    def _keep(self, state: TrainState, progress: Progress) -> None:
        """Writes everything that an epoch leaves behind."""
        row, metrics = progress.history[-1], self.config.train.metrics
        if progress.best.epoch == progress.epoch:
            values = jax.tree.map(to_host, (state.averaged_params, state.model_state))
            if is_primary():
                save_weights(
                    self.folder / "best",
                    self.config,
                    *values,
                    epoch=progress.epoch,
                    step=int(state.step),
                    val_loss=row["val_loss"],
                )
        self._save(state, progress)
        try:
            if is_primary():
                write_history(self.folder, progress.history, metrics=metrics, best_epoch=progress.best.epoch)
            write_previews(
                self.folder / "previews" / f"epoch_{progress.epoch:04d}",
                self.config,
                self.compiled,
                state,
                self.pairs["valid"],
            )
            self.log.write("epoch", **row)
        except OSError as error:
            self.checkpoints.wait()
            raise ConfigError(
                f"{self.folder}: cannot be written: {error.strerror}; the state of epoch {progress.epoch} is saved"
            ) from None
        shown = "  ".join(
            f"{name} {row[name]:.4f}" for name in row if name.startswith("val_") and row[name] is not None
        )
        mark = "  (best so far)" if progress.best.epoch == progress.epoch else ""
        self.reporter.info(
            f"epoch {progress.epoch}: loss {row['loss']:.4f}  {shown}  "
            f"rate {row['learning_rate']:.3g}  {row['seconds']:.1f} s{mark}"
        )

    def _save(self, state: TrainState, progress: Progress) -> None:
        self.publish()
        # The state is the same before and after an epoch is closed; the number must not be.
        self.checkpoints.save(int(state.step) + progress.epoch, state, progress.to_json())
        self.stop_vote.saved()

    def _leave_if_asked(self, state: TrainState, progress: Progress) -> None:
        if self.stop_vote.global_vote != Vote.STOP:
            return
        cause = self.stop_vote.cause
        self._save(state, progress)
        self.checkpoints.wait()
        step = int(state.step)
        self.log.write("interrupted", signal=cause, step=step)
        raise InterruptedRunError(
            f"{cause}: stopped at step {step}; the state is saved, run the same command again to go on"
        )
