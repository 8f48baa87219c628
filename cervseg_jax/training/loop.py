"""The training loop: everything that touches disk, clock and signals around the pure steps.

The order within an epoch is fixed: train, evaluate, history, best weights, checkpoint, curves, previews. All that a
resume needs is in the checkpoint: the state, and `Progress` beside it.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import keras
import numpy as np

from cervseg_jax.console import Reporter
from cervseg_jax.data.batch import Batch
from cervseg_jax.data.pipeline import eval_batches, steps_per_epoch, train_batches
from cervseg_jax.data.source import Pair
from cervseg_jax.errors import ConfigError, DivergedError, InterruptedRunError
from cervseg_jax.evaluation import Scores, evaluate
from cervseg_jax.heads import num_maps
from cervseg_jax.models import build_model, functionalize
from cervseg_jax.sections import Config
from cervseg_jax.training.checkpoint import Checkpoints
from cervseg_jax.training.compiled import Compiled, compile_run
from cervseg_jax.training.interrupt import StopRequest
from cervseg_jax.training.optimizer import make_optimizer
from cervseg_jax.training.plateau import BestState, PlateauState, stops_early, update_best, update_plateau
from cervseg_jax.training.preview import write_previews
from cervseg_jax.training.run_folder import EventLog
from cervseg_jax.training.schedule import rate_factor
from cervseg_jax.training.sharding import make_mesh, replicated
from cervseg_jax.training.state import TrainState, create_state
from cervseg_jax.training.step import StepMetrics, check_rate_factors
from cervseg_jax.training.writers import History, write_history
from cervseg_jax.weights import load_arrays, save_weights


@dataclass(frozen=True)
class Progress:
    """What the host must remember besides the state."""

    plateau: PlateauState
    best: BestState = BestState()
    history: History = field(default_factory=list)
    scores: Scores = field(default_factory=Scores)
    """Training scores of the epoch that is under way."""

    @property
    def epoch(self) -> int:
        """Finished epochs."""
        return len(self.history)

    def to_json(self) -> dict[str, Any]:
        """Returns JSON values; an infinite loss becomes None."""
        return {
            "plateau": [_finite(value) for value in self.plateau],
            "best": [_finite(value) for value in self.best],
            "history": list(self.history),
            "scores": self.scores.to_json(),
        }

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> "Progress":
        """Restores what `to_json` returned."""
        rate, lowest, wait = stored["plateau"]
        val_loss, epoch = stored["best"]
        plateau = PlateauState(rate, math.inf if lowest is None else lowest, wait)
        best = BestState(math.inf if val_loss is None else val_loss, epoch)
        return cls(plateau, best, list(stored["history"]), Scores.from_json(stored["scores"]))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


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
) -> TrainResult:
    """Trains to the end, or continues what an earlier call in this folder left.

    Args:
      config: the recipe.
      folder: an open run folder.
      pairs: the files, by split; "train" and "valid" are used.
      reporter: for messages.
      stop: polled after each step.

    Returns:
      The final progress.

    Raises:
      InterruptedRunError: if `stop` was set; the state is saved.
      DivergedError: if a loss is not finite; the last good state is kept.
      CheckpointError: if no state can be restored, or none saved.
      DataError: if a file has become unreadable.
    """
    if not pairs.get("valid"):
        raise ConfigError("data.root: training needs validation images (valid), to choose the best epoch by")
    log = EventLog(folder)
    optimizer = make_optimizer(clip_value=config.train.clip_value, weight_decay=config.train.weight_decay)
    mesh = make_mesh(config.runtime.mesh, batch_size=config.train.batch_size)
    keras.utils.set_random_seed(config.train.seed)  # initial weights
    model = build_model(
        config.model.name,
        image_size=config.model.image_size,
        args=config.model.args,
        dtype=config.runtime.precision,
        num_maps=num_maps(config.model.heads),
    )
    apply, params, model_state = functionalize(model)
    check_rate_factors(config.train.rate_factors, params)
    if config.train.init_from is not None:
        params, model_state = load_arrays(config.train.init_from / "best", params, model_state)
    state = create_state(params, model_state, optimizer, with_ema=config.train.ema_decay is not None)
    state = jax.device_put(state, replicated(mesh))
    progress = Progress(PlateauState(config.train.learning_rate))

    checkpoints = Checkpoints(folder / "checkpoints", keep=config.train.keep_checkpoints)
    try:
        restored = checkpoints.restore_newest(state, warn=reporter.warn)
        if restored is not None:
            state, progress = restored.state, Progress.from_json(restored.meta)
            reporter.info(f"resumed from step {int(state.step)}, {progress.epoch} epochs finished")
            log.write("resumed", step=int(state.step), epoch=progress.epoch)
        reason = _end_reason(config, progress)
        if reason is None:
            compiled = compile_run(config, apply, optimizer, state, mesh, reporter=reporter, log=log)
            run = _Run(config, folder, pairs, compiled, checkpoints, reporter, stop, log)
            state, progress = run.epochs(state, progress)
            reason = _end_reason(config, progress) or "finished"
        checkpoints.wait()
    finally:
        checkpoints.close()
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
    compiled: Compiled
    checkpoints: Checkpoints
    reporter: Reporter
    stop: StopRequest
    log: EventLog

    def epochs(self, state: TrainState, progress: Progress) -> tuple[TrainState, Progress]:
        """Trains until the last epoch or an early stop."""
        batches = train_batches(self.config, self.pairs["train"], start_step=int(state.step))
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
        sharding = self.compiled.batch_sharding
        waited, pending = 0.0, None
        title = f"epoch {progress.epoch + 1}/{self.config.train.epochs}"
        with self.reporter.progress(title, num_steps, done=done) as advance:
            for number in range(done, num_steps):
                before = time.monotonic()
                batch = next(batches)
                waited += time.monotonic() - before
                rate = self._rate(progress, progress.epoch * num_steps + number)
                state, metrics = self.compiled.train_step(state, jax.device_put(batch, sharding), np.float32(rate))
                # The step before this one is read while this one runs.
                self._record(progress, pending)
                pending = (batch, metrics)
                advance(f"loss {progress.scores.loss:.4f}")
                if self.stop():
                    break
        self._record(progress, pending)
        self._leave_if_asked(state, progress)
        return state, waited

    def _rate(self, progress: Progress, step: int) -> float:
        """The learning rate of the update after `step` others."""
        train = self.config.train
        return progress.plateau.learning_rate * rate_factor(
            step,
            warmup_steps=train.warmup_steps,
            total_steps=train.epochs * steps_per_epoch(self.config, len(self.pairs["train"])),
            final_factor=train.cosine.final_factor if train.cosine else None,
        )

    def _record(self, progress: Progress, pending: tuple[Batch, StepMetrics] | None) -> None:
        if pending is None:
            return
        batch, metrics = pending
        valid, image_id = np.asarray(batch.valid), np.asarray(batch.image_id)
        loss = progress.scores.add(metrics, valid=valid, image_id=image_id)
        if not math.isfinite(loss):
            files = sorted({self.pairs["train"][index].image_path.name for index in image_id})
            self.log.write("diverged", loss=str(loss), files=files)
            raise DivergedError(
                f"the loss became {loss} in epoch {progress.epoch + 1}, with the images {', '.join(files)}; the last "
                "saved state is kept; try a lower train.learning_rate, train.clip_value, or input_range: unit"
            )

    def _validate(self, state: TrainState, progress: Progress) -> Scores:
        pairs, batch_size = self.pairs["valid"], self.config.train.batch_size
        sharding = self.compiled.batch_sharding
        batches = eval_batches(self.config, pairs, batch_size=batch_size)
        with self.reporter.progress("validation", math.ceil(len(pairs) / batch_size)) as advance:
            scores = evaluate(
                lambda batch: self.compiled.eval_step(state, jax.device_put(batch, sharding)),
                batches,
                each=advance,
                stop=self.stop,
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
            row |= {name: _finite(training[name]), f"val_{name}": _finite(valid[name])}
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
            save_weights(
                self.folder / "best",
                self.config,
                state.averaged_params,
                state.model_state,
                epoch=progress.epoch,
                step=int(state.step),
                val_loss=row["val_loss"],
            )
        self._save(state, progress)
        try:
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
        # The state is the same before and after an epoch is closed; the number must not be.
        self.checkpoints.save(int(state.step) + progress.epoch, state, progress.to_json())

    def _leave_if_asked(self, state: TrainState, progress: Progress) -> None:
        if not self.stop():
            return
        self._save(state, progress)
        self.checkpoints.wait()
        step = int(state.step)
        self.log.write("interrupted", signal=self.stop.signal_name, step=step)
        raise InterruptedRunError(
            f"{self.stop.signal_name}: stopped at step {step}; the state is saved, run the same command again to go on"
        )
