"""Array aliases, and the check of shapes at run time."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from beartype import beartype
from jaxtyping import jaxtyped

F = TypeVar("F", bound=Callable[..., Any])

ArrayLike = Any
"""A NumPy array, a JAX array, or what stands for one: a `ShapeDtypeStruct` or a sharding."""

if TYPE_CHECKING:
    from jax import Array
else:
    Array = Any  # Commands that only read and write files start without JAX.

Params = dict[str, Array]
"""Trainable variables by variable path."""

ModelState = dict[str, Array]
"""BatchNorm statistics by variable path."""


def typechecked(function: F) -> F:
    """Checks the shapes and types of a function's arguments and result at run time.

    Under `jax.jit` the check runs while tracing and costs nothing per call; otherwise some 20 microseconds.

    Args:
      function: has jaxtyping annotations.

    Returns:
      The function; calls that violate an annotation raise `jaxtyping.TypeCheckError`.
    """
    return jaxtyped(function, typechecker=beartype)  # type: ignore[return-value]
