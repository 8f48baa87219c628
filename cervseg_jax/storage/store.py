"""Requests to buckets and web servers through fsspec."""

import base64
import errno
import functools
import importlib
import logging
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

from cervseg_jax.errors import ConfigError
from cervseg_jax.extras import install_command
from cervseg_jax.storage.retrying import LOGIN, StoreError, attempt, repeated

REQUEST_SECONDS, BYTES_PER_SECOND = 60, 2**16
"""A request may take this long, and longer by what it carries at the slowest rate worth waiting for."""
LISTED_FIELDS = "kind,nextPageToken,prefixes,items(name,size,md5Hash,crc32c,generation)"
"""What is asked of Cloud Storage about each object; all fields would take ten times the memory."""


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
        system._request = repeated(functools.partial(plain_request, system))
    return system


def share_file_system(scheme: str) -> None:
    """Lets file systems that other libraries make for a scheme see what other machines write.

    Raises:
      ConfigError: if a package is missing.
    """
    file_system(scheme)
    import fsspec.config

    fsspec.config.conf[SCHEMES[scheme].protocol] = {"use_listings_cache": False}


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


def list_tree(scheme: str, key: str) -> dict[str, Entry]:
    """Lists all files below a folder.

    Returns:
      Entries of files by their path below the folder; none if there is no such folder.

    Raises:
      NotADirectoryError: if it is a file.
      StoreError: if there is no such bucket, it refuses or cannot be reached.
    """
    try:
        if SCHEMES[scheme].is_web:
            return _list_pages(scheme, key)
        listed = _request(scheme, key, "read", "_find", key, detail=True)
    except FileNotFoundError:
        listed = {}
    if not listed:
        require_bucket(scheme, key.partition("/")[0])
    if key in listed:
        raise NotADirectoryError(errno.ENOTDIR, "is a file", f"{scheme}://{key}")
    entries = {name.removeprefix(f"{key}/"): _entry(info) for name, info in listed.items() if not name.endswith("/")}
    return {name: entry for name, entry in entries.items() if not entry.is_folder}


def _list_pages(scheme: str, key: str) -> dict[str, Entry]:
    """Returns the files of a page and of the pages below it."""
    entries: dict[str, Entry] = {}
    for name, entry in _list_page(scheme, key).items():
        if entry.is_folder:
            below = _list_pages(scheme, f"{key}/{name}")
            entries |= {f"{name}/{inner}": found for inner, found in below.items()}
        else:
            entries[name] = entry
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
        login = f" (log in: {LOGIN})" if scheme == "gs" else ""
        raise StoreError(f"{scheme}://{name}: no such bucket, or it is not shown to this machine{login}") from None
    except StoreError:
        pass  # needs another permission than its files


def place(scheme: str, key: str) -> str:
    """Returns the name by which fsspec knows a file."""
    return f"{scheme}://{quote(key, safe='/:@')}" if SCHEMES[scheme].is_web else key


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
