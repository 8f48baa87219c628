"""Commands in several processes, one per host, on top of `jax.distributed`.

Every process runs the same program on its share of the data. In training, process 0 writes all files except
checkpoints, which the processes write together; in inference, each process writes the files of its images.
"""

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cervseg_jax.errors import CervsegError, ConfigError, first_line
from cervseg_jax.runtime.processes import ProcessSpec

HEARTBEAT_SECONDS = 30
"""A process that has sent no heartbeat for this long counts as lost, and all others end."""
SHUTDOWN_SECONDS = 30
JOIN_SECONDS = 300
MESSAGE_BYTES = 4096
_LAUNCHERS = (("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"), ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"))
"""Variables of the launchers that JAX supports: number of processes and index of this one."""


Rows = TypeVar("Rows")


class RemoteProcessError(CervsegError):
    """Another process has failed; carries that process' message and exit code."""


def initialize_distributed(processes: ProcessSpec) -> None:
    """Connects to the other processes, if there are any. Call it before the first JAX computation.

    Raises:
      ConfigError: if the flags are incomplete, or the processes cannot connect.
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
        raise ConfigError(f"could not connect the processes: {first_line(error)}") from None


def is_primary() -> bool:
    """Whether this is the primary process, which writes files and prints messages."""
    return jax.process_index() == 0


@contextmanager
def sync_errors() -> Iterator[None]:
    """Runs a block on every process and fails on all of them if it fails on one. Collective: enter it on every process.

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
        messages = allgather_text("" if error is None else f"{error.exit_code} {error}")
        failed = [(index, text) for index, text in enumerate(messages) if text]
        if failed:
            jax.distributed.shutdown()  # together: a process that exits on its own is reported as lost to the others
        if failed and error is None:
            index, text = failed[0]
            code, _, message = text.partition(" ")
            remote = RemoteProcessError(f"process {index} of {len(messages)}: {message}")
            remote.exit_code = int(code)
            raise remote
    if error is not None:
        raise error


def allgather_text(text: str) -> Sequence[str]:
    """Gathers a text of at most `MESSAGE_BYTES` from every process. Collective: call it on every process."""
    sent = np.zeros(MESSAGE_BYTES, np.uint8)
    data = text.encode(errors="backslashreplace")[:MESSAGE_BYTES]
    sent[: len(data)] = np.frombuffer(data, np.uint8)
    received = np.asarray(multihost_utils.process_allgather(sent)).reshape(-1, MESSAGE_BYTES)
    return [bytes(row).rstrip(b"\0").decode(errors="ignore") for row in received]


def allgather_bytes(data: bytes) -> list[bytes]:
    """Gathers some bytes, of any length, from every process. Collective: call it on every process."""
    if jax.process_count() == 1:
        return [data]
    lengths = np.asarray(multihost_utils.process_allgather(np.array([len(data)], np.int32))).ravel()
    sent = np.zeros(max(1, lengths.max()), np.uint8)
    sent[: len(data)] = np.frombuffer(data, np.uint8)
    received = np.asarray(multihost_utils.process_allgather(sent)).reshape(len(lengths), -1)
    return [row[:length].tobytes() for row, length in zip(received, lengths, strict=True)]


def allgather_json(value: Any) -> list[Any]:
    """Gathers JSON values from every process. Collective: call it on every process."""
    return [json.loads(data) for data in allgather_bytes(json.dumps(value).encode("utf-8", "surrogatepass"))]


def share_of(count: int) -> range:
    """Returns which of `count` items this process does; the shares of all processes are disjoint and complete."""
    return range(jax.process_index(), count, jax.process_count())


def allgather_rows(indices: Sequence[int], rows: Rows) -> Rows:
    """Gathers the rows that the processes have computed. Collective: call it on every process.

    Args:
      indices: index of each row of this process among the rows of all, such as `share_of`.
      rows: a pytree of NumPy arrays with a leading axis of the length of `indices`; of the same types and further
        axes on all processes, also where there are no rows.

    Returns:
      The rows of all processes in the order of their indices.
    """
    if jax.process_count() == 1:
        return rows
    leaves, structure = jax.tree.flatten(rows)
    packed = io.BytesIO()
    np.savez(packed, np.array(indices, np.int64), *leaves)
    gathered: list[list[np.ndarray]] = []
    for data in allgather_bytes(packed.getvalue()):
        with np.load(io.BytesIO(data), allow_pickle=False) as stored:
            gathered.append([stored[f"arr_{index}"] for index in range(len(leaves) + 1)])
    places, *joined = (np.concatenate(parts) for parts in zip(*gathered, strict=True))
    order = np.argsort(places, kind="stable")
    return jax.tree.unflatten(structure, [values[order] for values in joined])


def broadcast_array(array: np.ndarray) -> np.ndarray:
    """Returns the array of process 0; its shape and type must be known. Collective: call it on every process."""
    return np.asarray(multihost_utils.broadcast_one_to_all(array))


def leave_processes() -> None:
    """Ends the connection with the other processes, so that none of them ends with another. Collective.

    The devices of this process can be used as before; collective calls are no longer possible.
    """
    if jax.process_count() > 1:
        jax.distributed.shutdown()


def require_equal(what: str, text: str) -> None:
    """Checks that a text, such as the list of data files with their hashes, is the same on all processes.

    Raises:
      ConfigError: on every process, if it differs on one.
    """
    if jax.process_count() == 1:
        return
    with sync_errors():
        hashes = allgather_text(hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest())
        different = [index for index, value in enumerate(hashes) if value != hashes[0]]
        if different:
            raise ConfigError(
                f"{what} differs between processes: {', '.join(map(str, different))} from 0; every host needs the same "
                "program, config and files"
            )


def first_problem(problem: str) -> str:
    """Returns the problem of the first process that has one, or "". Collective: call it on every process."""
    if jax.process_count() == 1:
        return problem
    return next((text for text in allgather_text(problem) if text), "")


def make_all_reduce_max(mesh: Mesh) -> Callable[[int], jax.Array]:
    """Returns a function that computes the largest of the integers that the processes call it with.

    The call is collective and returns at once, as all JAX computations do; converting the result to `int` waits for it.

    Args:
      mesh: devices of all processes.
    """
    one_per_device = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    largest = jax.jit(jnp.max, in_shardings=one_per_device, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def all_reduce_max(value: int) -> jax.Array:
        values = jax.make_array_from_callback((mesh.size,), one_per_device, lambda _: np.full(1, value, np.int32))
        return largest(values)

    return all_reduce_max


def require_shared(folder: Path, *, option: str = "the run folder (--run-dir)") -> None:
    """Checks that a folder is on a disk that all processes share.

    Args:
      folder: the folder; it must exist.
      option: what the message tells the user to move.

    Raises:
      ConfigError: on every process, if one cannot see a file that process 0 wrote there.
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
                f"{folder}: this process does not see what process 0 writes there; put {option} on a disk that all "
                "hosts share"
            )
    with sync_errors():
        if is_primary():
            token.unlink()
