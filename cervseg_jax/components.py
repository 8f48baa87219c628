"""Lookup of named components, and validation of their arguments against function signatures."""

import difflib
import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from cervseg_jax.errors import ConfigError

T = TypeVar("T")


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Returns the known word most similar to `word`, or None.

    Example:
      >>> nearest("epoch", ["epochs", "batch_size"])
      'epochs'
    """
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return matches[0] if matches else None


def suggestion(word: str, known: Iterable[str]) -> str:
    """Returns the tail of an error message: the nearest known word, then all known words.

    Example:
      >>> suggestion("unett", ["unet", "swin_unet"])
      "did you mean 'unet'? known: swin_unet, unet"
    """
    names = sorted(known)
    guess = nearest(word, names)
    return (f"did you mean {guess!r}? " if guess else "") + f"known: {', '.join(names) or '(none)'}"


def lookup(table: Mapping[str, T], name: str, *, key: str) -> T:
    """Returns `table[name]`.

    Args:
      table: component table such as `MODELS` or `LOSSES`.
      name: name given by the user.
      key: config key or option that the name comes from, for the message.

    Raises:
      ConfigError: if the table has no such name.
    """
    if name not in table:
        raise ConfigError(f"{key}: unknown name {name!r}; {suggestion(name, table)}")
    return table[name]


def bind(
    function: Callable[..., Any], args: Mapping[str, Any], *, key: str, reserved: Iterable[str] = ()
) -> dict[str, Any]:
    """Validates `args` against the signature of `function` and fills in defaults.

    Values are not coerced: a quoted number is rejected where a number is expected.

    Args:
      function: called with the result as keyword arguments.
      args: values given by the user.
      key: config key of `args`, for messages.
      reserved: parameters supplied by the caller, which a config must not set.

    Returns:
      All keyword arguments except the reserved ones, converted to the annotated types.

    Raises:
      ConfigError: for an unknown, missing or wrongly typed argument.

    Example:
      >>> def blur(image, *, sigma: float = 1.0, size: tuple[int, int] = (3, 3)): ...
      >>> bind(blur, {"size": [5, 5]}, key="augment.args", reserved=["image"])
      {'sigma': 1.0, 'size': (5, 5)}
    """
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(function, eval_str=True).parameters.items()
        if name not in reserved
    }
    for name in args:
        if name not in parameters:
            raise ConfigError(f"{key}: unknown key {name!r}; {suggestion(name, parameters)}")
    bound = {}
    for name, parameter in parameters.items():
        if name in args:
            bound[name] = _checked(args[name], parameter.annotation, key=f"{key}.{name}")
        elif parameter.default is not inspect.Parameter.empty:
            bound[name] = parameter.default
        else:
            raise ConfigError(f"{key}: the key {name!r} is required")
    return bound


def _checked(value: Any, annotation: Any, *, key: str) -> Any:
    """Converts `value` to `annotation` by strict JSON rules: lists become tuples, integers become floats."""
    from pydantic import TypeAdapter, ValidationError  # slow to import and not needed for `--help`

    try:
        return TypeAdapter(annotation).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        raise ConfigError(f"{key}: {error.errors()[0]['msg']}, got {value!r}") from None
