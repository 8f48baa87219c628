"""Says so when input does not come: a disk or a network share that hangs would otherwise look like a slow step."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import TracebackType

from cervseg_jax.data.batch import Batch

PATIENCE_SECONDS = 60.0
"""A batch that takes longer is reported, and again after as long."""


class InputWatchdog:
    """Waits for batches, with a thread beside it that warns when one does not come."""

    def __init__(self, warn: Callable[[str], None], *, patience_seconds: float = PATIENCE_SECONDS) -> None:
        """Prepares the watch; `with` starts and ends its thread.

        Args:
          warn: is given the warning.
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
        """Ends it."""
        self._ended.set()
        self._thread.join()

    def next(self, batches: Iterator[Batch]) -> tuple[Batch, float]:
        """Returns the next batch, and the seconds that it was waited for."""
        start = self._since = time.monotonic()
        try:
            return next(batches), time.monotonic() - start
        finally:
            self._since = None

    def iterate(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yields all batches, watched over as by `next`."""
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
                    f"waiting for images for {now - since:.0f} s: the disk or the network share that data.root lies on "
                    "may hang; training goes on as soon as they come"
                )
