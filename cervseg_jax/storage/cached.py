"""Reading files of a store by way of the cache: each is fetched once, checked, and kept as long as there is room."""

import base64
import contextlib
import fcntl
import functools
import hashlib
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from cervseg_jax.errors import ConfigError, DataError
from cervseg_jax.storage import store
from cervseg_jax.storage.address import Address
from cervseg_jax.storage.cache import Cache, CacheFullError, default_cache, key_of, verified
from cervseg_jax.storage.retrying import DamagedError, attempt
from cervseg_jax.storage.store import Entry

PIECE_BYTES = 2**23
"""Larger files are fetched in pieces of this size, of which a cut loses one."""
MAX_REQUESTS = 32
"""Requests at a time."""

_LOGGER = logging.getLogger("cervseg_jax")
T = TypeVar("T")
R = TypeVar("R")


def read_file(address: Address, *, max_bytes: int = 2**63) -> bytes:
    """Reads a file that does not change, from the cache if it is there.

    Raises:
      DataError: if it is missing, empty or too large, or what arrives is damaged again and again.
      StoreError: if the store refuses or cannot be reached.
    """
    with _translated(address):
        entry = address.entry()
        _check_size(address, entry.size, max_bytes)
        if entry.size is not None and entry.size > PIECE_BYTES:
            return local_file(address).read_bytes()
        data = default_cache().read(_key(address, entry)) if entry.version else None
        if data is None:
            data, entry = _fetch(address, entry)
            _check_size(address, len(data), max_bytes)
            _keep(address, entry, data)
        return data


def _check_size(address: Address, size: int | None, max_bytes: int) -> None:
    if size == 0:
        raise DataError(f"{address}: is empty (zero bytes)")
    if size is not None and size > max_bytes:
        raise DataError(f"{address}: is larger than {max_bytes // 2**20} MiB")


def local_file(path: Path) -> Path:
    """Returns a file on this machine with the same content, for programs that open files by name.

    It is in the cache, and stays there for at least `OPENING_SECONDS`.

    Args:
      path: an address; others are returned as they are.

    Raises:
      ConfigError: if the cache cannot hold it.
      DataError: as `read_file`.
      StoreError: as `read_file`.
    """
    if not isinstance(path, Address):
        return path
    cache = default_cache()
    with _translated(path):
        entry = path.entry()
        if entry.size is None:
            entry = path.entry(refresh=True)
        if not entry.version or entry.size is None:
            raise DataError(f"{path}: the server tells neither its size nor its version; download it")
        key = _key(path, entry)
        found = cache.find(key)
        if found is not None and verified(found):
            return found
        try:
            return _fetch_in_pieces(path, entry, cache, key)
        except CacheFullError as error:
            raise ConfigError(f"{path}: {error}") from None


def fetch_ahead(items: Iterable[T]) -> Iterator[T]:
    """Yields items when the files that they name are in the cache, while those of the next ones are fetched.

    Files that cannot be fetched are left to the one who reads them, who is told why.

    Args:
      items: paths, or tuples that hold some; those without addresses are passed on at once.
    """
    waiting: deque[tuple[T, list[Future[None]]]] = deque()
    with contextlib.ExitStack() as stack:
        pool: ThreadPoolExecutor | None = None
        for item in items:
            addresses = list(_addresses_in(item))
            if pool is None and addresses:
                pool = ThreadPoolExecutor(MAX_REQUESTS)
                stack.callback(pool.shutdown, cancel_futures=True)
            waiting.append((item, [pool.submit(_fetch_quietly, address) for address in addresses] if pool else []))
            while waiting and (len(waiting) > 2 * MAX_REQUESTS or not waiting[0][1]):
                yield _when_fetched(*waiting.popleft())
        while waiting:
            yield _when_fetched(*waiting.popleft())


def fetch_all(items: Iterable[Any]) -> None:
    """Fetches the files that items name, many at a time; see `fetch_ahead`."""
    deque(fetch_ahead(items), maxlen=0)


def map_parallel(work: Callable[[T], R], items: Sequence[T], *, is_remote: bool) -> list[R]:
    """Calls a function for each item, for many at a time if it waits for a store; returns the results in order."""
    if not is_remote:
        return [work(item) for item in items]
    with ThreadPoolExecutor(MAX_REQUESTS) as pool:
        return list(pool.map(work, items))


def read_ahead(work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Yields the results of a function for each item in order, while it is called for the next ones."""
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(MAX_REQUESTS) as pool:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > 2 * MAX_REQUESTS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _when_fetched(item: T, fetches: list[Future[None]]) -> T:
    for fetch in fetches:
        fetch.result()
    return item


def _fetch_quietly(address: Address) -> None:
    """Brings a small file into the cache unless it is there, or the cache takes none."""
    with contextlib.suppress(Exception):
        entry = address.entry()
        if entry.version and entry.size is not None and entry.size <= PIECE_BYTES:
            cache, key = default_cache(), _key(address, entry)
            cache.make_room(0)
            if cache.find(key) is None:
                data, entry = _fetch(address, entry)
                _keep(address, entry, data)


def _addresses_in(item: Any) -> Iterator[Address]:
    if isinstance(item, Address):
        yield item
    elif isinstance(item, tuple):
        for part in item:
            yield from _addresses_in(part)


@contextlib.contextmanager
def _translated(address: Address) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{address}: no such file") from None
    except DamagedError as error:
        raise DataError(f"{address}: {error}") from None


def _key(address: Address, entry: Entry) -> str:
    return key_of(address, entry.size, entry.version)


def _fetch(address: Address, entry: Entry) -> tuple[bytes, Entry]:
    """Returns content and entry; another entry if the list was old and the file has changed since."""
    known = entry

    def work() -> bytes:
        nonlocal known
        data = store.read(address.scheme, address.key)
        problem = _difference(known, len(data), [data])
        if problem:
            known = address.entry(refresh=True)
            problem = _difference(known, len(data), [data])
        if problem:
            raise DamagedError(problem)
        return data

    return attempt(work, address=str(address), verb="read"), known


def _difference(entry: Entry, size: int, pieces: Iterable[bytes]) -> str:
    """Returns how content differs from what the store says about it; "" if it does not."""
    if entry.size is not None and size != entry.size:
        return f"arrives with {size} of {entry.size} bytes"
    if entry.md5 is not None:
        digest = hashlib.md5(usedforsecurity=False)
        for piece in pieces:
            digest.update(piece)
        return "" if digest.hexdigest() == entry.md5 else "arrives with another checksum (MD5) than the store's"
    if entry.crc32c is not None:
        return "" if _crc32c(pieces) == entry.crc32c else "arrives with another checksum (CRC32C) than the store's"
    return ""


def _crc32c(pieces: Iterable[bytes]) -> str:
    from google_crc32c import Checksum  # pyright: ignore[reportMissingImports] (comes with gcsfs)

    checksum = Checksum()
    for piece in pieces:
        checksum.update(piece)
    return base64.b64encode(checksum.digest()).decode()


def _keep(address: Address, entry: Entry, data: bytes) -> None:
    if not entry.version:
        return
    try:
        default_cache().write(_key(address, entry), data, suffix=address.suffix)
    except (CacheFullError, OSError) as error:
        _warn_once(f"files are read without being kept on this machine: a copy {error}")


@functools.cache
def _warn_once(message: str) -> None:
    _LOGGER.warning("%s", message)


def _fetch_in_pieces(address: Address, entry: Entry, cache: Cache, key: str) -> Path:
    """Fetches a file, from where an interrupted process has stopped; one process at a time."""
    size = entry.size or 0
    part = cache.begin_part(key)
    with _locked(part) as file:
        found = cache.find(key)
        if found is not None and verified(found):  # another process has just fetched it
            part.unlink(missing_ok=True)
            return found
        have = min(file.seek(0, 2), size)
        cache.make_room(size - have)
        file.truncate(have)
        for start in range(have, size, PIECE_BYTES):
            _append_piece(address, file, start, min(start + PIECE_BYTES, size))
        problem = _difference(entry, file.seek(0, 2), _pieces(file))
        if problem:
            part.unlink()
            raise DataError(f"{address}: {problem}; if it has just been replaced, call again")
        return cache.finish_part(part, suffix=address.suffix, sha256=_sha256(file))


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[BinaryIO]:
    """Opens a file that one process at a time writes."""
    while True:
        with path.open("ab+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                is_there = path.stat().st_ino == os.fstat(file.fileno()).st_ino
            except FileNotFoundError:
                is_there = False  # the process that had the lock has renamed or removed it
            if is_there:
                yield file
                return


def _append_piece(address: Address, file: BinaryIO, start: int, end: int) -> None:
    def work() -> bytes:
        data = address.read_range(start, end)
        if len(data) != end - start:
            raise DamagedError(f"bytes {start} to {end} arrive with a length of {len(data)}")
        return data

    file.write(attempt(work, address=str(address), verb="read"))
    file.flush()


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    file.seek(0)
    while piece := file.read(PIECE_BYTES):
        yield piece


def _sha256(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    for piece in _pieces(file):
        digest.update(piece)
    return digest.hexdigest()
