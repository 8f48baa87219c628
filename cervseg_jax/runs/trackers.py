"""Experiment trackers: TensorBoard and Weights & Biases get the values that `log.jsonl` has."""

import math
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cervseg_jax.errors import ConfigError
from cervseg_jax.extras import install_command
from cervseg_jax.files import write_text


class Tracker(NamedTuple):
    """An experiment tracker."""

    track: Callable[[int, Mapping[str, float]], None]
    """`track(step, values)` logs values by name, such as `epoch/val_loss`."""
    close: Callable[[], None]
    """Waits until all values are written."""


def viewing_advice(trackers: Sequence[str], run: str) -> list[str]:
    """Returns one line for each tracker: how its figures are viewed.

    Args:
      trackers: keys of `TRACKERS`.
      run: the run folder, as shown to the user.
    """
    advice = {
        "tensorboard": f"curves: tensorboard --logdir {run}/tensorboard (needs: pip install tensorboard)",
        "wandb": "curves: at wandb.ai after `wandb login`; with WANDB_MODE=offline, upload them later by `wandb sync`",
    }
    return [advice[name] for name in trackers]


def _missing(name: str) -> ConfigError:
    return ConfigError(f"train.trackers: {name} needs an extra: {install_command(name)}")


def _tensorboard(folder: Path) -> Tracker:
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise _missing("tensorboard") from None
    writer: Any = None

    def track(step: int, values: Mapping[str, float]) -> None:
        nonlocal writer
        if writer is None:
            # After a kill the values beyond the resumed step are logged again; TensorBoard drops the old ones.
            writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step, flush_secs=10)
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    def close() -> None:
        if writer is not None:
            writer.close()

    return Tracker(track, close)


def _wandb(folder: Path) -> Tracker:
    try:
        import wandb  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise _missing("wandb") from None
    run: Any = None

    def track(step: int, values: Mapping[str, float]) -> None:
        nonlocal run
        if run is None:
            name = folder / "wandb_id.txt"
            if not name.is_file():
                write_text(name, uuid.uuid4().hex)
            run = wandb.init(
                project="cervseg-jax",
                name=folder.name,
                id=name.read_text(encoding="utf-8"),
                dir=folder,
                resume="allow",
                # Offline by default: no upload and no prompt for a key unless the user asks for it.
                mode=os.environ.get("WANDB_MODE", "offline"),  # pyright: ignore[reportArgumentType]
            )
        run.log(dict(values), step=step)

    def close() -> None:
        if run is not None:
            run.finish()

    return Tracker(track, close)


TRACKERS: Mapping[str, Callable[[Path], Tracker]] = {"tensorboard": _tensorboard, "wandb": _wandb}
"""Trackers by the name in `train.trackers`; each is created from the run folder."""


def tracked_values(event: str, values: Mapping[str, Any]) -> dict[str, float]:
    """Returns the finite numbers among the values of an event as `<event>/<name>`.

    Example:
      >>> tracked_values("epoch", {"step": 7, "val_loss": 0.5, "files": ["a"], "mfu": None})
      {'epoch/val_loss': 0.5}
    """
    return {
        f"{event}/{name}": float(value)
        for name, value in values.items()
        if name != "step" and isinstance(value, int | float) and math.isfinite(value)
    }
