"""Number of threads that read, decode and write files."""

import os

from cervseg_jax.schema import DataConfig

MAX_THREADS = 16
"""More threads would mostly wait for the GIL."""


def default_threads() -> int:
    """Returns one thread per CPU core that the process may use, at most `MAX_THREADS`."""
    # In a Slurm job or a container the affinity is limited to its share of the machine; macOS has no affinity.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MAX_THREADS)


def num_threads(data: DataConfig) -> int:
    """Returns `data.threads`, or the default."""
    return default_threads() if data.threads is None else data.threads
