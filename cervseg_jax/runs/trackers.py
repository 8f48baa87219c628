"""Figures of a training for programs that draw curves: TensorBoard, Weights & Biases. `log.jsonl` has them as well."""

import math
import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cervseg_jax.errors import ConfigError
from cervseg_jax.files import write_text


class Tracker(NamedTuple):
    """Where figures go."""

    track: Callable[[int, Mapping[str, float]], None]
    """`track(step, values)` notes values by name, such as `epoch/val_loss`."""
    close: Callable[[], None]
    """Waits until all are written."""


def _missing(name: str) -> ConfigError:
    return ConfigError(f"train.trackers: {name} needs an extra: pip install 'cervseg-jax[{name}]'")


def _tensorboard(folder: Path) -> Tracker:
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise ConfigError(
            "train.trackers: tensorboard needs an extra: pip install 'cervseg-jax[tensorboard]'"
        ) from None
    writer: Any = None

    def track(step: int, values: Mapping[str, float]) -> None:
        nonlocal writer
        if writer is None:
            # Of a run that was killed, what lies after the state that it goes on from is not shown.
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
                # Nothing leaves the machine, and nobody is asked for a key, unless the user says so.
                mode=os.environ.get("WANDB_MODE", "offline"),  # pyright: ignore[reportArgumentType]
            )
        run.log(dict(values), step=step)

    def close() -> None:
        if run is not None:
            run.finish()

    return Tracker(track, close)


TRACKERS: Mapping[str, Callable[[Path], Tracker]] = {"tensorboard": _tensorboard, "wandb": _wandb}
"""What `train.trackers` can name: from a run folder to its tracker."""


def tracked_values(event: str, facts: Mapping[str, Any]) -> dict[str, float]:
    """Returns the figures among an event's facts, by `<event>/<name>`.

    Example:
      >>> tracked_values("epoch", {"step": 7, "val_loss": 0.5, "files": ["a"], "mfu": None})
      {'epoch/val_loss': 0.5}
    """
    return {
        f"{event}/{name}": float(value)
        for name, value in facts.items()
        if name != "step" and isinstance(value, int | float) and math.isfinite(value)
    }
