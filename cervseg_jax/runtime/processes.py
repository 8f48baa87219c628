"""Options of the command line for several processes."""

from collections.abc import Sequence
from typing import NamedTuple


class ProcessSpec(NamedTuple):
    """How to reach the other processes; values that are None are taken from the environment."""

    coordinator: str | None = None
    """`HOST:PORT` of process 0."""
    num_processes: int | None = None
    process_id: int | None = None
    is_cluster: bool = False
    """Whether JAX detects the cluster by itself, as on Cloud TPU."""


_FLAGS, _OPTIONS = ("--distributed",), ("--coordinator", "--num-processes", "--process-id")


def without_process_options(arguments: Sequence[str]) -> list[str]:
    """Returns the arguments of a command without those that say which of several processes it is.

    Example:
      >>> without_process_options(["eval", "a", "--coordinator", "host:1", "--process-id=0", "--tiled"])
      ['eval', 'a', '--tiled']
    """
    kept = []
    given = iter(arguments)
    for argument in given:
        if argument in _OPTIONS:
            next(given, None)
        elif argument not in _FLAGS and not argument.startswith(tuple(f"{option}=" for option in _OPTIONS)):
            kept.append(argument)
    return kept
