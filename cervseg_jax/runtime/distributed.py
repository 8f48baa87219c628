"""Several processes, one per host: joining, agreeing, failing together.

The engine is JAX's own `jax.distributed`. Every process runs the same program on its share of the data; process 0
writes what is not a checkpoint.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from cervseg_jax.errors import CervsegError, ConfigError
from cervseg_jax.runtime.processes import ProcessSpec

HEARTBEAT_SECONDS = 30
"""After so long without a sign of life a process counts as lost, and all others end."""
SHUTDOWN_SECONDS = 30
JOIN_SECONDS = 300
MESSAGE_BYTES = 4096
_LAUNCHERS = (("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"), ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"))
"""Variables of launchers that JAX knows: how many processes there are, and which one this is."""


class RemoteProcessError(CervsegError):
    """Another process has failed; its message and exit code."""


def initialize_distributed(processes: ProcessSpec) -> None:
    """Joins the other processes, if there are any; must come before anything computes.

    Raises:
      ConfigError: if the flags are not complete, or the others do not come.
    """
    given = (processes.coordinator, processes.num_processes, processes.process_id)
    if any(value is not None for value in given) and any(value is None for value in given):
        raise ConfigError("--coordinator, --num-processes and --process-id belong together; one of them is missing")
    launched = any(int(os.environ.get(count, "1")) > 1 and which in os.environ for count, which in _LAUNCHERS)
    several_tpu_hosts = "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")
    if processes.coordinator is None and not (processes.is_cluster or launched or several_tpu_hosts):
        return
    try:
        jax.distributed.initialize(
            *given,
            initialization_timeout=JOIN_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"the processes did not come together: {str(error).strip().splitlines()[0]}") from None


def is_primary() -> bool:
    """Whether this process writes files and speaks."""
    return jax.process_index() == 0


@contextmanager
def sync_errors() -> Iterator[None]:
    """Lets all processes go on, or fail, after a piece of work that each does for itself.

    Raises:
      CervsegError: the error of this process.
      RemoteProcessError: if another process has failed.
    """
    error = None
    try:
        yield
    except CervsegError as raised:
        error = raised
    if jax.process_count() > 1:
        said = allgather_text("" if error is None else f"{error.exit_code} {error}")
        failed = [(number, text) for number, text in enumerate(said) if text]
        if failed:
            jax.distributed.shutdown()  # while all are here: whoever leaves later would be missed
        if failed and error is None:
            number, text = failed[0]
            code, _, message = text.partition(" ")
            peer = RemoteProcessError(f"process {number} of {len(said)}: {message}")
            peer.exit_code = int(code)
            raise peer
    if error is not None:
        raise error


def allgather_text(text: str) -> Sequence[str]:
    """Returns what every process says, in their order; at most `MESSAGE_BYTES` of each."""
    sent = np.zeros(MESSAGE_BYTES, np.uint8)
    data = text.encode(errors="backslashreplace")[:MESSAGE_BYTES]
    sent[: len(data)] = np.frombuffer(data, np.uint8)
    received = np.asarray(multihost_utils.process_allgather(sent)).reshape(-1, MESSAGE_BYTES)
    return [bytes(row).rstrip(b"\0").decode(errors="ignore") for row in received]


def require_equal(what: str, text: str) -> None:
    """Makes sure that all processes have the same text, such as the list of all files with their hashes.

    Raises:
      ConfigError: on every process, if one differs.
    """
    if jax.process_count() == 1:
        return
    with sync_errors():
        hashes = allgather_text(hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest())
        odd = [number for number, found in enumerate(hashes) if found != hashes[0]]
        if odd:
            raise ConfigError(
                f"{what} differs between processes: {', '.join(map(str, odd))} from 0; every host needs the same "
                "program, config and files"
            )


def first_problem(local_vote: str) -> str:
    """Returns the first text that is not empty, of all processes in their order; "" if there is none."""
    if jax.process_count() == 1:
        return local_vote
    return next((text for text in allgather_text(local_vote) if text), "")


def require_shared(folder: Path) -> None:
    """Makes sure that all processes see the same folder.

    Raises:
      ConfigError: on every process, if one does not see what process 0 has written there.
    """
    if jax.process_count() == 1:
        return
    token = folder / ".shared"
    with sync_errors():
        if is_primary():
            token.write_text("seen by all processes")
    with sync_errors():
        if not token.exists():
            raise ConfigError(
                f"{folder}: this process does not see what process 0 writes there; put the run folder on a disk that "
                "all hosts share (--run-dir)"
            )
    with sync_errors():
        if is_primary():
            token.unlink()
