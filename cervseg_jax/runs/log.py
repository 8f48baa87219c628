"""The event log of a run, `log.jsonl`."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cervseg_jax.runs.trackers import TRACKERS, tracked_values

TRACKED_EVENTS = ("steps", "epoch")


class EventLog:
    """Appends events to `log.jsonl`, one JSON object per line; trackers get the values of steps and epochs."""

    def __init__(self, folder: Path, *, trackers: Sequence[str] = (), is_open: bool = True) -> None:
        """Opens `folder/log.jsonl` for appending.

        Args:
          folder: the run folder.
          trackers: names in `TRACKERS`.
          is_open: whether events are written; false on all processes but the primary one.

        Raises:
          ConfigError: if a tracker's package is not installed.
        """
        self._path = folder / "log.jsonl" if is_open else None
        self._trackers = [TRACKERS[name](folder) for name in trackers]

    def write(self, event: str, **values: Any) -> None:
        """Appends an event with its values and the time."""
        if self._path is None:
            return
        line = json.dumps({"time": round(time.time(), 3), "event": event, **values}, allow_nan=False, default=str)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        tracked = tracked_values(event, values) if event in TRACKED_EVENTS else {}
        for tracker in self._trackers:
            if tracked:
                tracker.track(values["step"], tracked)

    def close(self) -> None:
        """Waits until the trackers have written everything."""
        for tracker in self._trackers:
            tracker.close()
