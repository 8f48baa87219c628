"""Array aliases and the run-time check of shapes."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from beartype import beartype
from jaxtyping import jaxtyped

F = TypeVar("F", bound=Callable[..., Any])

ArrayLike = Any
"""A numpy array on the host, a JAX array on the device, or what describes one: a shape, a placement."""

Params = dict[str, jax.Array]
"""Trainable variables by variable path."""

ModelState = dict[str, jax.Array]
"""BatchNorm statistics by variable path."""


def typechecked(function: F) -> F:
    """Checks the annotated shapes and types of `function` at run time.

    Under `jax.jit` the check runs while tracing and costs nothing per call.

    Args:
      function: a function whose arguments carry jaxtyping annotations.

    Returns:
      The same function; a violation raises `jaxtyping.TypeCheckError`.
    """
    return jaxtyped(function, typechecker=beartype)  # type: ignore[return-value]
