"""Requests to buckets and web servers through fsspec, each repeated while the trouble looks temporary."""

import asyncio
import base64
import errno
import functools
import importlib
import itertools
import logging
import os
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

from cervseg_jax.errors import ConfigError, first_line
from cervseg_jax.extras import install_command

REQUEST_SECONDS, BYTES_PER_SECOND = 60, 2**16
"""A request may take this long, and longer by what it carries at the slowest rate worth waiting for."""
RETRY_SECONDS, FIRST_WAIT_SECONDS, MAX_WAIT_SECONDS = 60.0, 0.1, 10.0
"""A request is repeated for so long; the pauses double from the first to the longest one."""
PAGE_WAITS_SECONDS = (0.05, 0.2, 0.8)
"""Pauses before the single requests of a list are tried again."""
WARN_SECONDS = 3.0
"""A request that is repeated for longer than this is worth a warning."""
LISTED_FIELDS = "kind,nextPageToken,prefixes,items(name,size,md5Hash,crc32c,generation)"
"""What is asked of Cloud Storage about each object; all fields would take ten times the memory."""

_LOGIN = "gcloud auth application-default login"
_LOGGER = logging.getLogger("cervseg_jax")
_TRANSIENT_ERRNOS = frozenset({errno.EBUSY, errno.EIO, errno.ETIMEDOUT, errno.ECONNRESET, errno.EPIPE})
_CLIENT_LIBRARIES = ("aiohttp.", "botocore.", "requests.", "urllib3.", "google.auth.")


class Scheme(NamedTuple):
    """How the addresses of a scheme are read."""

    protocol: str
    """fsspec's name."""
    package: str
    """What fsspec needs for it."""
    extra: str
    """The extra that installs it."""
    is_web: bool = False
    """A web server: files cannot be written, and folders are pages with links."""


SCHEMES = {
    "gs": Scheme("gcs", "gcsfs", "bucket"),
    "s3": Scheme("s3", "s3fs", "s3"),
    "http": Scheme("http", "aiohttp", "bucket", is_web=True),
    "https": Scheme("https", "aiohttp", "bucket", is_web=True),
}
"""Addresses that can be read."""


class StoreError(ConfigError):
    """A store refuses access or cannot be reached: what goes for one file goes for all."""


class DamagedError(Exception):
    """What arrived is not what the store has; another try may be better."""


class Entry(NamedTuple):
    """What a store says about a file or folder."""

    is_folder: bool
    size: int | None = None
    """Bytes; None: unknown, as in the lists of web servers."""
    version: str = ""
    """Changes whenever the content does; empty: unknown."""
    md5: str | None = None
    """Hexadecimal; None: the store knows none."""
    crc32c: str | None = None
    """Base64, big-endian; None: the store knows none."""


@functools.cache
def file_system(scheme: str) -> Any:
    """Returns fsspec's file system for a scheme, without listing caches, because other machines write too.

    Raises:
      ConfigError: if a package is missing.
    """
    known = SCHEMES[scheme]
    try:
        import fsspec

        importlib.import_module(known.package)
    except ImportError:
        raise ConfigError(f"{scheme}:// addresses need an extra: {install_command(known.extra)}") from None
    for name in ("gcsfs", "s3fs", "fsspec"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # failures are reported by one message
    system = fsspec.filesystem(known.protocol, use_listings_cache=False, skip_instance_cache=True)
    plain_request = getattr(getattr(type(system), "_request", None), "__wrapped__", None)
    if plain_request is not None:  # of gcsfs, whose own retries begin with pauses of seconds
        system._request = _repeated(functools.partial(plain_request, system))
    return system


def _repeated(request: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
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


def describe(scheme: str, key: str) -> Entry:
    """Asks about a file or folder.

    Args:
      scheme: a key of `SCHEMES`.
      key: the address without its scheme, such as `bucket/folder/name`.

    Raises:
      FileNotFoundError: if there is none.
      StoreError: if the store refuses or cannot be reached.
    """
    info = _request(scheme, key, "read", "_info", place(scheme, key))
    if SCHEMES[scheme].is_web and info.get("mimetype") == "text/html" and not key.endswith((".html", ".htm")):
        return Entry(is_folder=True)  # a page with links
    return _entry(info)


def list_folder(scheme: str, key: str) -> dict[str, Entry]:
    """Lists a folder.

    Returns:
      Entries by name.

    Raises:
      FileNotFoundError: if there is no such folder, or a web server lists none.
      NotADirectoryError: if it is a file.
      StoreError: if the store refuses or cannot be reached.
    """
    if SCHEMES[scheme].is_web:
        return _list_page(scheme, key)
    options: dict[str, Any] = {"fields": LISTED_FIELDS} if scheme == "gs" else {}
    entries = {}
    for info in _request(scheme, key, "read", "_ls", key, detail=True, **options):
        name = info["name"].rstrip("/")
        if name != key:
            entries[name.rpartition("/")[2]] = _entry(info)
        elif info["type"] == "file" and info.get("size"):
            raise NotADirectoryError(errno.ENOTDIR, "is a file", f"{scheme}://{key}")
    return entries


def _list_page(scheme: str, key: str) -> dict[str, Entry]:
    """Returns what a page of a web server links to, one level below it."""
    start = f"{place(scheme, key)}/"
    entries = {}
    for info in _request(scheme, key, "read", "_ls", start, detail=True):
        link = info["name"].removeprefix(start)
        name = unquote(link.rstrip("/"))
        if info["name"].startswith(start) and name and not {"/", "?", "#"} & set(name):
            entries[name] = Entry(is_folder=link.endswith("/"))
    if not entries:
        raise FileNotFoundError(errno.ENOENT, "lists no files", f"{scheme}://{key}")
    return entries


def read(scheme: str, key: str, *, start: int | None = None, end: int | None = None) -> bytes:
    """Reads a file as it is now, or its bytes from `start` up to `end`.

    Raises:
      FileNotFoundError: if there is none.
      StoreError: if the store refuses or cannot be reached.
    """
    return _request(scheme, key, "read", "_cat_file", place(scheme, key), start=start, end=end)


def write(scheme: str, key: str, data: bytes) -> None:
    """Writes a file; it appears complete or not at all.

    Raises:
      StoreError: if the store refuses or cannot be reached.
    """
    if SCHEMES[scheme].is_web:
        raise StoreError(f"{scheme}://{key}: files cannot be written to a web server")
    options = {"consistency": "md5"} if scheme == "gs" else {}
    seconds = len(data) / BYTES_PER_SECOND
    try:
        _request(scheme, key, "written", "_pipe_file", key, data, seconds=seconds, **options)
    except FileNotFoundError:
        require_bucket(scheme, key.partition("/")[0])
        raise


def delete(scheme: str, key: str) -> None:
    """Deletes a file.

    Raises:
      FileNotFoundError: if there is none.
      StoreError: if the store refuses or cannot be reached.
    """
    _request(scheme, key, "deleted", "_rm_file", key)


@functools.cache
def require_bucket(scheme: str, name: str) -> None:
    """Makes sure that there is a bucket; one that cannot be looked at counts as there.

    Raises:
      StoreError: if there is none.
    """
    if SCHEMES[scheme].is_web:
        return
    try:
        _request(scheme, name, "read", "_info", name)
    except FileNotFoundError:
        raise StoreError(f"{scheme}://{name}: no such bucket, or it is not shown to this machine ({_LOGIN})") from None
    except StoreError:
        pass  # needs another permission than its files


def place(scheme: str, key: str) -> str:
    """Returns the name by which fsspec knows a file."""
    return f"{scheme}://{quote(key, safe='/:@')}" if SCHEMES[scheme].is_web else key


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


def _request(scheme: str, key: str, verb: str, method: str, *args: Any, seconds: float = 0.0, **options: Any) -> Any:
    system = file_system(scheme)
    from fsspec.asyn import sync

    def work() -> Any:
        return sync(system.loop, getattr(system, method), *args, timeout=REQUEST_SECONDS + seconds, **options)

    return attempt(work, address=f"{scheme}://{key}", verb=verb)


def _entry(info: dict[str, Any]) -> Entry:
    if info["type"] == "directory":
        return Entry(is_folder=True)
    md5 = info.get("md5Hash") or info.get("Content-MD5")
    version = info.get("generation") or info.get("ETag") or info.get("Last-Modified") or md5 or ""
    return Entry(
        is_folder=False,
        size=None if info.get("size") is None else int(info["size"]),
        version=str(version).strip('"'),
        md5=base64.b64decode(md5).hex() if md5 else None,
        crc32c=info.get("crc32c"),
    )


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
            f"{address}: cannot be {verb}: no permission ({reason}); log in (for gs://: {_LOGIN}), or ask the owner "
            "of the bucket for access"
        )
    return (
        f"{address}: cannot be {verb}: {reason}; does the bucket exist, and may this machine access it (for gs://: "
        f"{_LOGIN})?"
    )
