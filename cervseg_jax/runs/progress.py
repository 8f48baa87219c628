"""What the host must remember of a training besides the state."""

import math
from dataclasses import dataclass, field
from typing import Any

from cervseg_jax.engine.plateau import BestState, PlateauState
from cervseg_jax.engine.scores import Scores
from cervseg_jax.runs.history import History


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
            "plateau": [finite(value) for value in self.plateau],
            "best": [finite(value) for value in self.best],
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


def finite(value: float) -> float | None:
    """Returns a number that JSON knows, or None."""
    return value if math.isfinite(value) else None
