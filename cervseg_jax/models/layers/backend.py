"""The one switch between XLA's own operations and what is faster on a CPU."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

from jax.sharding import Mesh

_is_for_cpu: ContextVar[bool] = ContextVar("is_for_cpu", default=False)


@contextlib.contextmanager
def formulation_for(mesh: Mesh) -> Iterator[None]:
    """Chooses, for all layers traced inside, what is fast on a mesh: our own formulations on a single CPU.

    Args:
      mesh: the devices that the program is for.
    """
    token = _is_for_cpu.set(mesh.size == 1 and mesh.devices.flat[0].platform == "cpu")
    try:
        yield
    finally:
        _is_for_cpu.reset(token)


def is_for_cpu() -> bool:
    """Whether a layer that is traced now is for a single CPU."""
    return _is_for_cpu.get()
