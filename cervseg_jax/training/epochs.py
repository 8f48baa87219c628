"""The training loop: disk, clock and signals around the pure steps.

The order within an epoch is fixed: train, evaluate, history, best weights, checkpoint, curves, previews.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from cervseg_jax.console import RateMeter, Reporter, format_duration
from cervseg_jax.data.batch import Batch
from cervseg_jax.data.pairs import Pair
from cervseg_jax.data.pipeline import eval_batches, steps_per_epoch, train_batches
from cervseg_jax.data.samples import SampleCache
from cervseg_jax.engine.experiment import CompiledSteps, Experiment
from cervseg_jax.engine.plateau import BestState, stops_early, update_best, update_plateau
from cervseg_jax.engine.schedule import lr_multiplier
from cervseg_jax.engine.scores import Scores, evaluate
from cervseg_jax.engine.state import TrainState
from cervseg_jax.engine.step import StepMetrics
from cervseg_jax.errors import ConfigError, DivergedError, InterruptedRunError
from cervseg_jax.runs.bucket import LocalRun
from cervseg_jax.runs.checkpoint import Checkpoints
from cervseg_jax.runs.history import write_history
from cervseg_jax.runs.log import EventLog
from cervseg_jax.runs.progress import Progress, checkpoint_number, finite
from cervseg_jax.runs.weights import save_weights
from cervseg_jax.runtime.distributed import is_primary
from cervseg_jax.runtime.mesh import to_host
from cervseg_jax.runtime.signals import StopVote, Vote
from cervseg_jax.schema import Config, Scale
from cervseg_jax.training.meter import StepMeter, StepProfiler
from cervseg_jax.training.preview import write_previews
from cervseg_jax.training.watchdog import InputWatchdog


def _note(progress: Progress, training: RateMeter) -> str:
    """Describes the state of the training: the loss once there is one, and the time until all epochs are done."""
    notes = [f"loss {progress.scores.loss:.4f}"] if progress.scores.num_images else []
    if training.seconds_left is not None:
        notes.append(f"training ends in {format_duration(training.seconds_left)}")
    return ", ".join(notes)


def end_reason(config: Config, progress: Progress) -> str | None:
    """Returns why the training is complete, or None if it is not."""
    if progress.epoch >= config.train.epochs:
        return f"all {config.train.epochs} epochs are done"
    if progress.epoch and stops_early(progress.best, progress.epoch, config.train.early_stop_patience):
        return f"val_loss has not improved for {config.train.early_stop_patience} epochs"
    return None


@dataclass(frozen=True)
class EpochLoop:
    """The training loop of a run, with the objects that all epochs share."""

    experiment: Experiment
    steps: CompiledSteps
    run: LocalRun
    pairs: Mapping[str, Sequence[Pair]]
    load: SampleCache
    scale: Scale | None
    evaluated: Callable[[TrainState], TrainState]
    """Returns the state whose weights are validated and stored."""
    kept: Mapping[str, bytes]
    """Tuned files of the initial weights, which the best weights have until others are tuned."""
    checkpoints: Checkpoints
    reporter: Reporter
    log: EventLog
    stop_vote: StopVote
    meter: StepMeter
    profiler: StepProfiler
    watchdog: InputWatchdog

    @property
    def _config(self) -> Config:
        return self.experiment.config

    @property
    def _steps_per_epoch(self) -> int:
        return steps_per_epoch(self._config, len(self.pairs["train"]))

    def run_epochs(self, state: TrainState, progress: Progress) -> Progress:
        """Trains until the last epoch or an early stop.

        Args:
          state: the state to continue from; its memory is donated.
          progress: the progress that belongs to it.

        Returns:
          The final progress; the last checkpoint holds the state.
        """
        batches = train_batches(
            self._config,
            self.pairs["train"],
            start_step=int(state.step),
            load=self.load,
            images=self.experiment.local_images,
        )
        training = RateMeter(self._config.train.epochs * self._steps_per_epoch, done=int(state.step))
        while end_reason(self._config, progress) is None:
            start = time.monotonic()
            state, input_wait = self._train_epoch(state, progress, batches, training)
            validation = self._validate(state, progress) if self.pairs.get("valid") else None
            seconds = time.monotonic() - start
            progress = self._close_epoch(state, progress, validation, seconds=seconds, input_wait=input_wait)
            self._write_epoch(state, progress)
        return progress

    def _train_epoch(
        self, state: TrainState, progress: Progress, batches: Iterator[Batch], training: RateMeter
    ) -> tuple[TrainState, float]:
        """Runs the remaining steps of an epoch; returns the state and the seconds spent waiting for input."""
        num_steps = self._steps_per_epoch
        done = int(state.step) - (progress.history[-1]["step"] if progress.history else 0)
        input_wait, pending = 0.0, None
        title = f"epoch {progress.epoch + 1}/{self._config.train.epochs}"
        with self.reporter.progress(title, num_steps, done=done) as advance:
            for step in range(progress.epoch * num_steps + done, (progress.epoch + 1) * num_steps):
                batch, wait = self.watchdog.next(batches)
                input_wait += wait
                learning_rate = self._learning_rate(progress, step)
                self.meter.start_step(step, learning_rate=learning_rate, wait=wait)
                self.stop_vote.cast()
                state, metrics = self.steps.train_step(
                    state, self.experiment.place_batch(batch), np.float32(learning_rate)
                )
                # The metrics of the previous step are read while this one runs.
                self._record(progress, pending)
                self.profiler.step(metrics)
                pending = metrics
                training.advance()
                advance(_note(progress, training))
                vote = self.stop_vote.global_vote
                if vote == Vote.STOP:
                    break
                if vote == Vote.SAVE:
                    self._record(progress, pending)
                    pending = None
                    self._save(state, progress)
        self._record(progress, pending)
        if self.stop_vote.global_vote == Vote.STOP:
            raise self._save_and_interrupt(state, progress)
        return state, input_wait

    def _learning_rate(self, progress: Progress, step: int) -> float:
        """Returns the learning rate of the update with the 0-based index `step`."""
        train = self._config.train
        return progress.plateau.learning_rate * lr_multiplier(
            step,
            warmup_steps=train.warmup_steps,
            total_steps=train.epochs * self._steps_per_epoch,
            final_factor=train.cosine.final_factor if train.cosine else None,
        )

    def _record(self, progress: Progress, metrics: StepMetrics | None) -> None:
        """Waits for the metrics of a step and adds them to the scores of the epoch."""
        if metrics is None:
            return
        loss = progress.scores.add(metrics)
        self.meter.finish_step(metrics)
        norm = float(metrics.gradient_norm)
        # Clipping makes an infinite gradient harmless.
        is_bad_gradient = math.isnan(norm) or (math.isinf(norm) and self._config.train.clip_value is None)
        if not math.isfinite(loss) or is_bad_gradient:
            what = f"loss became {loss}" if not math.isfinite(loss) else f"gradient became {norm}"
            files = sorted({self.pairs["train"][index].image_path.name for index in np.asarray(metrics.image_id)})
            self.log.write("diverged", loss=str(loss), gradient_norm=str(norm), files=files)
            raise DivergedError(
                f"the {what} in epoch {progress.epoch + 1}, with the images {', '.join(files)}; the last "
                "saved state is kept; try a lower train.learning_rate, train.clip_value, or input_range: unit"
            )

    def _validate(self, state: TrainState, progress: Progress) -> Scores:
        """Scores the validation images.

        Raises:
          InterruptedRunError: if the processes agree to stop.
        """
        pairs, batch_size = self.pairs["valid"], self._config.train.batch_size
        batches = eval_batches(
            self._config, pairs, batch_size=batch_size, load=self.load, images=self.experiment.local_images
        )

        def must_stop() -> bool:
            self.stop_vote.cast()
            return self.stop_vote.global_vote == Vote.STOP

        evaluated = self.evaluated(state)
        with self.reporter.progress("validation", math.ceil(len(pairs) / batch_size)) as advance:
            scores = evaluate(
                lambda batch: self.steps.eval_step(evaluated, self.experiment.place_batch(batch)),
                self.watchdog.iterate(batches),
                on_progress=advance,
                stop=must_stop,
            )
        if scores is None:
            raise self._save_and_interrupt(state, progress)
        return scores

    def _close_epoch(
        self, state: TrainState, progress: Progress, validation: Scores | None, *, seconds: float, input_wait: float
    ) -> Progress:
        """Returns the progress after an epoch: history, learning rate, best epoch (the last without validation)."""
        training, valid = progress.scores.summary(), validation.summary() if validation is not None else {}
        val_loss = valid.get("loss")
        if val_loss is not None and not math.isfinite(val_loss):
            raise DivergedError(
                f"val_loss became {val_loss} in epoch {progress.epoch + 1}; the last saved state is kept"
            )
        row: dict[str, Any] = {"epoch": progress.epoch + 1, "step": int(state.step)}
        for name in ("loss", *self._config.train.metrics):
            row |= {name: finite(training[name]), f"val_{name}": finite(valid[name]) if valid else None}
        row |= {
            "learning_rate": self._learning_rate(progress, int(state.step) - 1),
            "seconds": seconds,
            "images_per_second": progress.scores.num_images / seconds,
            "input_wait": input_wait,
        }
        if val_loss is None:
            best = BestState(epoch=progress.epoch + 1)
            return replace(progress, best=best, history=[*progress.history, row], scores=Scores())
        rules = self._config.train.plateau
        plateau = update_plateau(progress.plateau, val_loss, **rules.model_dump()) if rules else progress.plateau
        last = progress.history[-self._config.train.selection_epochs + 1 :]
        recent = [row["val_loss"] for row in last if row["val_loss"] is not None]
        recent = [*recent, val_loss] if self._config.train.selection_epochs > 1 else [val_loss]
        best = update_best(progress.best, float(np.mean(recent)), progress.epoch + 1)
        return replace(progress, plateau=plateau, best=best, history=[*progress.history, row], scores=Scores())

    def _write_epoch(self, state: TrainState, progress: Progress) -> None:
        """Writes the files of an epoch."""
        row, metrics, folder = progress.history[-1], self._config.train.metrics, self.run.folder
        is_best = progress.best.epoch == progress.epoch
        evaluated = self.evaluated(state)
        if is_best:
            params, model_state = jax.tree.map(to_host, (evaluated.averaged_params, evaluated.model_state))
            if is_primary():
                save_weights(
                    folder / "best",
                    self._config,
                    params,
                    model_state,
                    epoch=progress.epoch,
                    step=int(state.step),
                    val_loss=row["val_loss"],
                    scale=self.scale,
                    tuned=self.kept,
                )
        self._save(state, progress)
        try:
            if is_primary():
                write_history(folder, progress.history, metrics=metrics, best_epoch=progress.selected_epoch)
            write_previews(
                folder / "previews" / f"epoch_{progress.epoch:04d}",
                self.experiment,
                self.steps.predict,
                evaluated,
                self.pairs.get("valid") or self.pairs["train"],
                scale=self.scale,
            )
            self.log.write("epoch", **row)
        except OSError as error:
            self.checkpoints.wait()
            raise ConfigError(
                f"{folder}: cannot be written: {error.strerror}; the state of epoch {progress.epoch} is saved"
            ) from None
        shown = "  ".join(
            f"{name} {row[name]:.4f}" for name in row if name.startswith("val_") and row[name] is not None
        )
        self.reporter.info(
            f"epoch {progress.epoch}: loss {row['loss']:.4f}  {shown}  "
            f"rate {row['learning_rate']:.3g}  {row['seconds']:.1f} s"
            f"{'  (best so far)' if progress.selected_epoch == progress.epoch else ''}"
        )

    def _save(self, state: TrainState, progress: Progress) -> None:
        self.run.publish()
        self.checkpoints.save(checkpoint_number(int(state.step), progress.phase), state, progress.to_json())

    def _save_and_interrupt(self, state: TrainState, progress: Progress) -> InterruptedRunError:
        """Saves the state and returns the error that ends the training."""
        cause, step = self.stop_vote.cause, int(state.step)
        self._save(state, progress)
        self.checkpoints.wait()
        self.log.write("interrupted", signal=cause, step=step)
        return InterruptedRunError(
            f"{cause}: stopped at step {step}; the state is saved, run the same command again to go on"
        )
