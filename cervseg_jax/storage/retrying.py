"""Retries: what looks temporary is tried again, the rest ends with one message."""

import asyncio
import errno
import itertools
import logging
import os
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any

from cervseg_jax.errors import ConfigError, first_line

RETRY_SECONDS, FIRST_WAIT_SECONDS, MAX_WAIT_SECONDS = 60.0, 0.1, 10.0
"""A request is repeated for so long; the pauses double from the first to the longest one."""
PAGE_WAITS_SECONDS = (0.05, 0.2, 0.8)
"""Pauses before the single requests of a list are tried again."""
WARN_SECONDS = 3.0
"""A request that is repeated for longer than this is worth a warning."""

LOGIN = "gcloud auth application-default login"
_LOGGER = logging.getLogger("cervseg_jax")
_TRANSIENT_ERRNOS = frozenset({errno.EBUSY, errno.EIO, errno.ETIMEDOUT, errno.ECONNRESET, errno.EPIPE})
_CLIENT_LIBRARIES = ("aiohttp.", "botocore.", "requests.", "urllib3.", "google.auth.")


class StoreError(ConfigError):
    """A store refuses access or cannot be reached: what goes for one file goes for all."""


class DamagedError(Exception):
    """What arrived is not what the store has; another try may be better."""


def repeated(request: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Returns a request that is tried again a few times, so that one failed page does not cost the whole list."""

    async def repeated(*args: Any, **options: Any) -> Any:
        for wait in PAGE_WAITS_SECONDS:
            try:
                return await request(*args, **options)
            except Exception as error:  # noqa: BLE001 (see `attempt`)
                if not _is_transient(error):
                    raise
            await asyncio.sleep(wait * random.uniform(0.5, 1.5))  # noqa: S311 (see `attempt`)
        return await request(*args, **options)

    return repeated


def attempt(work: Callable[[], Any], *, address: str, verb: str) -> Any:
    """Calls a function until it succeeds, for `RETRY_SECONDS` at most.

    Args:
      work: raises errors of the client, or `DamagedError`.
      address: what messages name.
      verb: what the function does, as in "cannot be read".

    Returns:
      Its result.

    Raises:
      FileNotFoundError: at once, if the file is missing.
      DamagedError: if that is still so at the end.
      StoreError: if the store refuses, or the trouble lasts.
    """
    begin, wait, has_warned = time.monotonic(), FIRST_WAIT_SECONDS, False
    for number in itertools.count(1):
        try:
            return work()
        except (ConfigError, NotADirectoryError):
            raise
        except Exception as raised:  # noqa: BLE001 (the clients' errors have no common base)
            error = _hidden_cause(raised)
        seconds = time.monotonic() - begin
        is_last = seconds + wait > RETRY_SECONDS
        if isinstance(error, FileNotFoundError):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), address) from None
        if isinstance(error, DamagedError) and is_last:
            raise error
        if not _is_transient(error) or is_last:
            raise StoreError(_message(error, address, verb, number, seconds)) from None
        if seconds > WARN_SECONDS and not has_warned:
            has_warned = True
            _LOGGER.warning("%s: cannot be %s at the moment (%s); trying again", address, verb, _reason(error))
        time.sleep(wait * random.uniform(0.5, 1.5))  # noqa: S311 (so that clients do not return together)
        wait = min(2 * wait, MAX_WAIT_SECONDS)


def _hidden_cause(error: Exception) -> Exception:
    """Returns what a failure was: fsspec calls all of a web server's "not found"."""
    cause = error.__cause__
    is_hidden = isinstance(error, FileNotFoundError) and type(cause).__module__.startswith("aiohttp.")
    return cause if is_hidden and isinstance(cause, Exception) and _status(cause) not in (404, 410) else error


def _status(error: Exception) -> int | None:
    """Returns the HTTP status of an answer; None if there was no answer."""
    status = getattr(error, "status", None) or getattr(error, "code", None)
    try:
        return int(status)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError):
        return None


def _is_transient(error: Exception) -> bool:
    status = _status(error)
    if status is not None:
        return status >= 500 or status in (408, 429)
    if isinstance(error, (DamagedError, TimeoutError, ConnectionError)):
        return True
    if isinstance(error, OSError) and error.errno in _TRANSIENT_ERRNOS:
        return True
    name = f"{type(error).__module__}.{type(error).__name__}"
    return name.startswith(_CLIENT_LIBRARIES) and not name.endswith(("RefreshError", "CredentialsError", "InvalidURL"))


def _reason(error: Exception) -> str:
    """Returns the error in a few words."""
    status, text = _status(error), first_line(error)
    return f"status {status}" if status is not None and str(status) not in text else text


def _message(error: Exception, address: str, verb: str, number: int, seconds: float) -> str:
    reason = _reason(error)
    if _is_transient(error):
        return (
            f"{address}: cannot be {verb}: {reason} ({number} attempts in {seconds:.0f} s); is this machine online, "
            "and the store up?"
        )
    if isinstance(error, PermissionError) or _status(error) in (401, 403) or "Forbidden" in reason:
        return (
            f"{address}: cannot be {verb}: no permission ({reason}); log in (for gs://: {LOGIN}), or ask the owner "
            "of the bucket for access"
        )
    return (
        f"{address}: cannot be {verb}: {reason}; does the bucket exist, and may this machine access it (for gs://: "
        f"{LOGIN})?"
    )
