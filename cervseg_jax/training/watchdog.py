"""Warns when input stalls; a hanging disk or network share would otherwise look like a slow step."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import TracebackType

from cervseg_jax.data.batch import Batch

PATIENCE_SECONDS = 60.0
"""Time after which a late batch is reported, and reported again."""


class InputWatchdog:
    """Waits for batches while a thread warns if one is late."""

    def __init__(self, warn: Callable[[str], None], *, patience_seconds: float = PATIENCE_SECONDS) -> None:
        """Creates the watchdog; `with` starts and ends its thread.

        Args:
          warn: called with the warning.
          patience_seconds: time between two warnings.
        """
        self._warn = warn
        self._patience = patience_seconds
        self._since: float | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="input-watch", daemon=True)

    def __enter__(self) -> "InputWatchdog":
        """Starts the thread."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the thread."""
        self._ended.set()
        self._thread.join()

    def next(self, batches: Iterator[Batch]) -> tuple[Batch, float]:
        """Returns the next batch and the seconds spent waiting for it."""
        start = self._since = time.monotonic()
        try:
            return next(batches), time.monotonic() - start
        finally:
            self._since = None

    def iterate(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yields all batches, each obtained by `next`."""
        with suppress(StopIteration):
            while True:
                batch, _ = self.next(batches)
                yield batch

    def _watch(self) -> None:
        warned = 0.0
        while not self._ended.wait(min(1.0, self._patience / 4)):
            since, now = self._since, time.monotonic()
            if since is not None and now - max(since, warned) >= self._patience:
                warned = now
                self._warn(
                    f"waiting for images for {now - since:.0f} s: the disk or network share of data.root may hang; "
                    "training continues as soon as the images arrive"
                )
