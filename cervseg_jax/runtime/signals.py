"""SIGTERM and Ctrl-C: finish the step, save, leave. A second signal leaves at once."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from types import FrameType

import jax

SIGNALS = (signal.SIGTERM, signal.SIGINT)
STEPS_UNDER_WAY = 2
"""Batches that were sent before the result of a step is read."""


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


class Vote(IntEnum):
    """What a process wants; the largest counts."""

    NOTHING = 0
    SAVE = 1
    STOP = 2


class StopVote:
    """What the processes want, agreed without a message of its own.

    Every process sends its wish along with its share of the batch, and the step returns the largest to all. What has
    come back counts, so that all act at the same step. A single process acts at once.

    JAX's own notice of preemption is not used: Orbax asks for it as well, with numbers of its own, and the processes
    then never meet.
    """

    def __init__(self, stop: StopRequest, is_time_to_save: Callable[[], bool]) -> None:
        """Starts without wishes.

        Args:
          stop: whether this process was asked to stop.
          is_time_to_save: whether the last state is old.
        """
        self._stop = stop
        self._is_time_to_save = is_time_to_save
        self._heard = Vote.NOTHING
        self._deaf = 0

    @property
    def local_vote(self) -> Vote:
        """This process' wish, to be sent."""
        return Vote.STOP if self._stop() else Vote.SAVE if self._is_time_to_save() else Vote.NOTHING

    @property
    def global_vote(self) -> Vote:
        """What is to be done now."""
        return self.local_vote if jax.process_count() == 1 else self._heard

    def observe(self, vote: int) -> None:
        """Notes what a step has returned."""
        self._deaf = max(0, self._deaf - 1)
        if vote == Vote.STOP or not self._deaf:
            self._heard = max(self._heard, Vote(vote))

    def saved(self) -> None:
        """Notes that a state was saved; the steps under way were sent before."""
        self._heard = Vote.STOP if self._heard == Vote.STOP else Vote.NOTHING
        self._deaf = STEPS_UNDER_WAY + 1

    @property
    def cause(self) -> str:
        """Names the signal."""
        return self._stop.signal_name or "a signal to another process"


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
