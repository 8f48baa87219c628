"""Progress of a training: what a resume needs in addition to the state."""

import math
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from cervseg_jax.engine.plateau import BestState, PlateauState
from cervseg_jax.engine.scores import Scores
from cervseg_jax.runs.history import History


class Phase(IntEnum):
    """Part of the training loop in which a state was saved; the same step can be saved once in each."""

    TRAINING = 0
    """Within an epoch: between two steps, or during validation."""
    EPOCH_END = 1
    """After an epoch was validated and entered into the history."""


def checkpoint_number(step: int, phase: Phase) -> int:
    """Returns the number that names a checkpoint's folder; it grows with the step, and with the phase within a step.

    Older runs have the sum of step and finished epochs as numbers. This is at most twice the step, so that the order
    of the checkpoints holds when such a run continues.

    Example:
      >>> checkpoint_number(10, Phase.TRAINING), checkpoint_number(10, Phase.EPOCH_END)
      (20, 21)
    """
    return len(Phase) * step + phase


@dataclass(frozen=True)
class Progress:
    """Host-side progress of a training; stored as the metadata of its checkpoints."""

    plateau: PlateauState
    best: BestState = BestState()
    history: History = field(default_factory=list)
    scores: Scores = field(default_factory=Scores)
    """Training scores of the unfinished epoch."""
    initial_sha256: str | None = None
    """Hash of the initial weights, where a share of them is stored with the best weights."""

    @property
    def epoch(self) -> int:
        """Number of finished epochs."""
        return len(self.history)

    @property
    def selected_epoch(self) -> int:
        """The epoch with the lowest validation loss, 1-based; 0 for none, and where there are no validation images."""
        return self.best.epoch if math.isfinite(self.best.val_loss) else 0

    @property
    def phase(self) -> Phase:
        """Part of the loop that the training is in."""
        return Phase.TRAINING if self.scores.num_images else Phase.EPOCH_END

    def to_json(self) -> dict[str, Any]:
        """Returns JSON values; an infinite loss becomes None."""
        return {
            "plateau": [finite(value) for value in self.plateau],
            "best": [finite(value) for value in self.best],
            "history": list(self.history),
            "scores": self.scores.to_json(),
            "initial_sha256": self.initial_sha256,
        }

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> "Progress":
        """Restores what `to_json` returned."""
        rate, lowest, wait = stored["plateau"]
        val_loss, epoch = stored["best"]
        plateau = PlateauState(rate, math.inf if lowest is None else lowest, wait)
        best = BestState(math.inf if val_loss is None else val_loss, epoch)
        scores = Scores.from_json(stored["scores"])
        return cls(plateau, best, list(stored["history"]), scores, stored.get("initial_sha256"))


def finite(value: float) -> float | None:
    """Returns a finite value, or None, as JSON has neither infinity nor NaN."""
    return value if math.isfinite(value) else None
