"""SIGTERM and Ctrl-C: finish the step, save, leave. A second signal leaves at once."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import jax
from jax.experimental import multihost_utils

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Whether, and by what signal, the program was asked to stop."""

    def __init__(self) -> None:
        """Starts without a request."""
        self.signal_name: str | None = None

    def __call__(self) -> bool:
        """Returns whether a signal has come."""
        return self.signal_name is not None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal_name is not None:
            os._exit(128 + number)
        self.signal_name = signal.Signals(number).name


class SharedStopRequest(StopRequest):
    """The same for several processes: a signal to one of them stops all at the same poll.

    JAX listens for SIGTERM and passes it on; a handler of ours would replace its own. All processes must poll equally
    often.
    """

    def __init__(self) -> None:
        """Starts without a request."""
        super().__init__()
        self._num_polls = 0

    def __call__(self) -> bool:
        """Returns whether the processes have agreed to stop here."""
        self._num_polls += 1
        if self.signal_name is None and multihost_utils.reached_preemption_sync_point(self._num_polls):
            self.signal_name = signal.SIGTERM.name
        return super().__call__()


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Turns SIGTERM and Ctrl-C into a request that the loop polls, while the context lasts.

    Yields:
      The request.
    """
    if jax.process_count() > 1:
        before = signal.signal(signal.SIGINT, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        try:
            yield SharedStopRequest()
        finally:
            signal.signal(signal.SIGINT, before)
        return
    request = StopRequest()
    before = {number: signal.signal(number, request._handle) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            # Once asked to stop, a late signal must not turn the exit code into that of a killed process.
            signal.signal(number, signal.SIG_IGN if request() else handler)
