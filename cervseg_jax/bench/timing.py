"""Timing of several things in one run, so that all meet the same moods of the machine."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

PRODUCT_SIZE = {"cpu": 2048, "gpu": 8192, "tpu": 8192}
"""Rows and columns of the matrices that a platform's ceiling is measured with."""


class Timing(NamedTuple):
    """Seconds of one call, over several rounds."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle one, in seconds."""
        return statistics.median(self.seconds)


def time_in_turns(calls: Mapping[str, Callable[[], Any]], *, rounds: int) -> dict[str, Timing]:
    """Calls everything once unmeasured and then in turns.

    Args:
      calls: by name; each returns when its work is done.
      rounds: how often each is measured.

    Returns:
      The times by name.
    """
    for call in calls.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def product_call(dtype: str) -> tuple[Callable[[], None], float]:
    """Returns a product of two large matrices to be timed, the ceiling of this machine, and its operations.

    Args:
      dtype: "float32", as precise as the network's convolutions, or "bfloat16".
    """
    size = PRODUCT_SIZE.get(jax.default_backend(), 2048)
    one = jnp.ones((size, size), dtype)
    product = jax.jit(jnp.matmul)

    def call() -> None:
        jax.block_until_ready(product(one, one))

    return call, 2.0 * size**3
