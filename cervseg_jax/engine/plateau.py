"""Learning-rate reduction and early stopping as pure functions.

Both watch `val_loss` once per epoch, by the rules of Keras' ReduceLROnPlateau (no cooldown) and EarlyStopping
(no minimum change). Comparisons are strict. The counters are part of the state that a resume restores.
"""

from typing import NamedTuple


class PlateauState(NamedTuple):
    """Current learning rate, lowest loss, and epochs since then."""

    learning_rate: float
    best: float = float("inf")
    wait: int = 0


def update_plateau(
    state: PlateauState, val_loss: float, *, factor: float, patience: int, min_delta: float, min_learning_rate: float
) -> PlateauState:
    """Returns the state after an epoch.

    An epoch is an improvement if `val_loss < best - min_delta`; only then `best` is updated. After `patience` epochs
    without an improvement the learning rate is multiplied by `factor` and the count starts again.

    Args:
      state: before the epoch.
      val_loss: the epoch's validation loss.
      factor: in (0, 1).
      patience: epochs.
      min_delta: smallest change that counts as an improvement.
      min_learning_rate: lower bound of the learning rate.

    Returns:
      The state for the next epoch.

    Example:
      >>> state = PlateauState(1.0, best=0.5, wait=1)
      >>> update_plateau(state, 0.5, factor=0.5, patience=2, min_delta=1e-4, min_learning_rate=0.0)
      PlateauState(learning_rate=0.5, best=0.5, wait=0)
    """
    if val_loss < state.best - min_delta:
        return PlateauState(state.learning_rate, val_loss, 0)
    if state.wait + 1 >= patience:
        return PlateauState(max(state.learning_rate * factor, min_learning_rate), state.best, 0)
    return state._replace(wait=state.wait + 1)


class BestState(NamedTuple):
    """The best epoch so far, 1-based; 0 for none."""

    val_loss: float = float("inf")
    epoch: int = 0


def update_best(state: BestState, val_loss: float, epoch: int) -> BestState:
    """Returns the better of the state and this epoch; an equal loss is no improvement."""
    return BestState(val_loss, epoch) if val_loss < state.val_loss else state


def stops_early(state: BestState, epoch: int, patience: int | None) -> bool:
    """Returns whether the loss has not improved for `patience` epochs (None: never)."""
    return patience is not None and epoch - state.epoch >= patience
