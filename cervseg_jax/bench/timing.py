"""Interleaved timing: machine load affects all timed functions equally."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

PRODUCT_SIZE = {"cpu": 2048, "gpu": 8192, "tpu": 8192}
"""Side of the matrices whose product measures a platform's peak rate."""


class Timing(NamedTuple):
    """Seconds of one call, over several rounds."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median in seconds."""
        return statistics.median(self.seconds)


def time_in_turns(calls: Mapping[str, Callable[[], Any]], *, rounds: int) -> dict[str, Timing]:
    """Calls every function once to warm up, then times them in turns.

    Args:
      calls: functions by name; each returns when its work is done.
      rounds: how often each is timed.

    Returns:
      Timings by name.
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
    """Returns a function that multiplies two large matrices, and its number of operations.

    Its rate is the peak that the network's steps are compared with.

    Args:
      dtype: "float32", in the precision of the network's convolutions, or "bfloat16".
    """
    size = PRODUCT_SIZE.get(jax.default_backend(), 2048)
    matrix = jnp.ones((size, size), dtype)
    product = jax.jit(jnp.matmul)

    def call() -> None:
        jax.block_until_ready(product(matrix, matrix))

    return call, 2.0 * size**3
