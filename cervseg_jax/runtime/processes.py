"""What the command line says about the other processes of a training."""

from typing import NamedTuple


class ProcessSpec(NamedTuple):
    """Where and how many they are; with nothing given the environment is asked."""

    coordinator: str | None = None
    """Host and port of process 0."""
    num_processes: int | None = None
    process_id: int | None = None
    is_cluster: bool = False
    """Whether JAX is to find the rest out by itself, as on Cloud TPU."""
