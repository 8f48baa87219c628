"""SIGTERM and Ctrl-C: finish the step, save, leave. A second signal leaves at once."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

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


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Turns SIGTERM and Ctrl-C into a request that the loop polls, while the context lasts.

    Yields:
      The request.
    """
    request = StopRequest()
    before = {number: signal.signal(number, request._handle) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            # Once asked to stop, a late signal must not turn the exit code into that of a killed process.
            signal.signal(number, signal.SIG_IGN if request() else handler)
