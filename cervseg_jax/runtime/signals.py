"""Graceful stop on SIGTERM and Ctrl-C: finish the step, save, exit. A second signal exits immediately."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from types import FrameType

import jax
from jax.sharding import Mesh

from cervseg_jax.runtime.distributed import make_all_reduce_max

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Records whether the program was asked to stop, and by which signal."""

    def __init__(self) -> None:
        """Creates it without a request."""
        self.signal_name: str | None = None

    def __call__(self) -> bool:
        """Returns whether a signal has arrived."""
        return self.signal_name is not None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal_name is not None:
            os._exit(128 + number)
        self.signal_name = signal.Signals(number).name


class Vote(IntEnum):
    """Request of a process; the largest of all processes wins."""

    NOTHING = 0
    SAVE = 1
    STOP = 2


class StopVote:
    """Agreement of all processes on saving or stopping at the same step.

    Every process casts its vote before each step. In a run of several processes the votes are reduced on the devices,
    in the shadow of the step, and every process acts on the same result. A single process acts on its own vote, and
    nothing is computed.

    JAX's notice of preemption is not used: Orbax polls it as well, with step numbers of its own, and the processes
    would then wait for each other forever.
    """

    def __init__(self, stop: StopRequest, is_time_to_save: Callable[[], bool], mesh: Mesh) -> None:
        """Creates a vote. Collective: call it on every process.

        Args:
          stop: whether this process was asked to stop.
          is_time_to_save: whether the newest saved state is older than it may be.
          mesh: devices of all processes.
        """
        self._stop = stop
        self._is_time_to_save = is_time_to_save
        self._reduce = make_all_reduce_max(mesh) if jax.process_count() > 1 else None
        self._result: jax.Array | None = None
        if self._reduce is not None:
            # Connects the devices now: later, a process that waits for its first images could be too late.
            jax.block_until_ready(self._reduce(Vote.NOTHING))

    @property
    def local_vote(self) -> Vote:
        """Vote of this process."""
        return Vote.STOP if self._stop() else Vote.SAVE if self._is_time_to_save() else Vote.NOTHING

    def cast(self) -> None:
        """Sends this process' vote. Collective: call it on every process before the same step."""
        if self._reduce is not None:
            self._result = self._reduce(self.local_vote)

    @property
    def global_vote(self) -> Vote:
        """The largest of the votes cast last, the same on every process; waits until all processes have cast theirs."""
        if self._reduce is None:
            return self.local_vote
        return Vote.NOTHING if self._result is None else Vote(int(self._result))

    @property
    def cause(self) -> str:
        """Name of the signal."""
        return self._stop.signal_name or "a signal to another process"


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Turns SIGTERM and Ctrl-C into a request that the training loop polls.

    Yields:
      The request.
    """
    request = StopRequest()
    before = {number: signal.signal(number, request._handle) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            # After a request, a late signal must not change the exit code to that of a killed process.
            signal.signal(number, signal.SIG_IGN if request() else handler)
