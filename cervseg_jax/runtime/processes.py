"""Options of the command line for several processes."""

from typing import NamedTuple


class ProcessSpec(NamedTuple):
    """How to reach the other processes; values that are None are taken from the environment."""

    coordinator: str | None = None
    """`HOST:PORT` of process 0."""
    num_processes: int | None = None
    process_id: int | None = None
    is_cluster: bool = False
    """Whether JAX detects the cluster by itself, as on Cloud TPU."""
