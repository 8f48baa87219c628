"""Number of threads for reading and writing files."""

import os

MAX_THREADS = 16
"""More threads would mostly wait for the GIL."""


def default_threads() -> int:
    """Returns one thread per CPU core that the process may use, at most `MAX_THREADS`."""
    # In a Slurm job or a container the affinity is limited to its share of the machine; macOS has no affinity.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MAX_THREADS)
