"""Number of threads that read, decode and write files."""

import os

from cervseg_jax.schema import DataConfig

MAX_THREADS = 16
"""More threads wait for Python's lock most of the time."""


def default_threads() -> int:
    """Returns one for each CPU core that the process may use, at most `MAX_THREADS`."""
    # Of a Slurm job or a container the first is its share of the machine; not every system has it.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MAX_THREADS)


def num_threads(data: DataConfig) -> int:
    """Returns `data.threads`, or the default."""
    return default_threads() if data.threads is None else data.threads
