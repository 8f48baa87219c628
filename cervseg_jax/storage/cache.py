"""A folder on this machine's disk with copies of files from buckets, bounded in size, which processes may share."""

import functools
import hashlib
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path

from cervseg_jax.errors import ConfigError

FOLDER_VARIABLE, GIB_VARIABLE = "CERVSEG_CACHE_DIR", "CERVSEG_CACHE_GIB"
DEFAULT_BYTES, DEFAULT_SHARE = 20 * 2**30, 0.25
"""Default limit: the smaller of this size and this share of the disk space that is free or the cache's own."""
SPARE_BYTES = 2**30
"""Disk space that is left free whatever the limit."""
EVICTED_SHARE = 0.1
"""Share of the limit that is freed at once when it is reached."""
RECOUNT_SHARE = 0.05
"""Share of the limit that a process writes before it counts again what others wrote."""
OPENING_SECONDS, LARGE_BYTES = 120, 2**23
"""A file of this size and more is not removed for so long after its last use: a program may be opening it by name."""
ABANDONED_SECONDS = 86_400
"""Unfinished copies that nobody has written to for this long are removed."""

_PART, _TEMPORARY = ".part", ".tmp"

_MAKING = threading.Lock()
"""Many threads ask for the cache at once, and each would count its files."""


class CacheFullError(Exception):
    """A file does not fit; the message says what to do."""


class Cache:
    """Copies of files by key. The name of a copy holds the SHA-256 of its content, which each reading checks.

    Copies that have not been used for the longest time are removed when the limit is reached, or when the disk is
    nearly full. Several threads and processes may use the folder; with processes the limit may be exceeded by
    `RECOUNT_SHARE` for each of them.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """Names the folder; it is made when the first copy is written.

        Args:
          folder: holds nothing but copies.
          max_bytes: limit of all copies.
        """
        self.folder = folder
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        self._used: int | None = None
        self._uncounted = 0

    def find(self, key: str) -> Path | None:
        """Returns the copy, unchecked; None if there is none."""
        try:
            names = os.listdir(self._shelf(key))
        except OSError:
            return None
        name = next((name for name in names if name.startswith(f"{key}-") and not name.endswith(_TEMPORARY)), None)
        return None if name is None else self._shelf(key) / name

    def read(self, key: str) -> bytes | None:
        """Returns the content of a copy; None if there is none, or it is damaged, in which case it is removed."""
        path = self.find(key)
        try:
            data = None if path is None else path.read_bytes()
        except OSError:
            return None  # another process has just removed it
        if path is None or data is None:
            return None
        if hashlib.sha256(data).hexdigest() != _digest_in(path):
            path.unlink(missing_ok=True)
            return None
        _mark_used(path)
        return data

    def write(self, key: str, data: bytes, *, suffix: str) -> None:
        """Keeps a copy.

        Raises:
          CacheFullError: if it does not fit.
          OSError: if the folder cannot be written.
        """
        self.make_room(len(data))
        shelf = self._shelf(key)
        shelf.mkdir(parents=True, exist_ok=True)
        temporary = shelf / f"{key}-{os.getpid()}-{threading.get_ident()}{_TEMPORARY}"
        try:
            temporary.write_bytes(data)
            temporary.replace(shelf / f"{key}-{hashlib.sha256(data).hexdigest()}{suffix}")
        except OSError:
            temporary.unlink(missing_ok=True)
            raise

    def begin_part(self, key: str) -> Path:
        """Returns the place of a copy that is written piece by piece; it outlives a killed process."""
        self._shelf(key).mkdir(parents=True, exist_ok=True)
        return self._shelf(key) / f"{key}{_PART}"

    def finish_part(self, part: Path, *, suffix: str, sha256: str) -> Path:
        """Gives a complete copy its name."""
        path = part.with_name(f"{part.stem}-{sha256}{suffix}")
        part.replace(path)
        return path

    def make_room(self, num_bytes: int) -> None:
        """Removes copies that have not been used for long until a file fits.

        Raises:
          CacheFullError: if that is impossible.
          OSError: if the folder cannot be made.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if num_bytes > self.max_bytes:
            raise CacheFullError(self._message(num_bytes))
        with self._lock:
            if self._used is None or self._uncounted > RECOUNT_SHARE * self.max_bytes:
                self._count()
            excess = max((self._used or 0) + num_bytes - self.max_bytes, self._lacking(num_bytes))
            if excess > 0:
                self._evict(excess + int(EVICTED_SHARE * self.max_bytes))
                excess = max((self._used or 0) + num_bytes - self.max_bytes, self._lacking(num_bytes))
            if excess > 0:
                raise CacheFullError(self._message(num_bytes))
            self._used = (self._used or 0) + num_bytes
            self._uncounted += num_bytes

    def _lacking(self, num_bytes: int) -> int:
        return num_bytes + SPARE_BYTES - shutil.disk_usage(self.folder).free

    def _message(self, num_bytes: int) -> str:
        free = shutil.disk_usage(self.folder).free
        return (
            f"needs {num_bytes / 2**30:.2f} GiB of the cache {self.folder}; it may hold {self.max_bytes / 2**30:.2f} "
            f"GiB, and its disk has {free / 2**30:.1f} GiB free, of which {SPARE_BYTES / 2**30:g} stay free; set "
            f"{FOLDER_VARIABLE} and {GIB_VARIABLE}"
        )

    def _count(self) -> list[tuple[float, int, Path]]:
        """Counts all copies, and removes abandoned ones.

        Returns:
          Time of last use, size and path of each finished copy.
        """
        found, total, now = [], 0, time.time()
        for shelf in os.scandir(self.folder):
            for item in os.scandir(shelf) if shelf.is_dir(follow_symlinks=False) else ():
                try:
                    status = item.stat(follow_symlinks=False)
                    is_unfinished = item.name.endswith((_PART, _TEMPORARY))
                    if is_unfinished and now - status.st_mtime > ABANDONED_SECONDS:
                        os.unlink(item)
                        continue
                except OSError:
                    continue  # its process has just renamed or removed it
                total += status.st_size
                if not is_unfinished:
                    found.append((status.st_mtime, status.st_size, Path(item.path)))
        self._used, self._uncounted = total, 0
        return found

    def _evict(self, num_bytes: int) -> None:
        freed, now = 0, time.time()
        for last_use, size, path in sorted(self._count()):
            if freed >= num_bytes:
                break
            if size >= LARGE_BYTES and now - last_use < OPENING_SECONDS:
                continue
            path.unlink(missing_ok=True)
            freed += size
        self._used = max(0, (self._used or 0) - freed)

    def _shelf(self, key: str) -> Path:
        return self.folder / key[:3]


def key_of(*parts: object) -> str:
    """Returns the key of a file from everything that tells it and its version from others."""
    return hashlib.sha256("\n".join(map(str, parts)).encode("utf-8", "surrogateescape")).hexdigest()[:40]


def verified(path: Path) -> bool:
    """Whether a copy is what its name says; it then counts as used."""
    try:
        with path.open("rb") as file:
            is_good = hashlib.file_digest(file, "sha256").hexdigest() == _digest_in(path)
    except OSError:
        return False
    _mark_used(path)
    return is_good


def _digest_in(path: Path) -> str:
    return path.name.partition("-")[2][:64]


def _mark_used(path: Path) -> None:
    try:
        os.utime(path)
    except OSError:
        pass  # removed meanwhile, or another user's


def default_cache() -> Cache:
    """Returns the cache of this machine: `CERVSEG_CACHE_DIR` and `CERVSEG_CACHE_GIB`, or the user's cache folder.

    All threads get the same one.

    Raises:
      ConfigError: if the limit is no positive number.
    """
    with _MAKING:
        return machine_cache()


@functools.cache
def machine_cache() -> Cache:
    """Makes what `default_cache` returns, once."""
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # the user has no home folder
        base = Path(tempfile.gettempdir())
    folder = Path(os.environ.get(FOLDER_VARIABLE) or base / "cervseg-jax" / "files").absolute()
    text = os.environ.get(GIB_VARIABLE)
    if not text:
        return Cache(folder, _default_limit(folder))
    try:
        limit = int(float(text) * 2**30)
    except (ValueError, OverflowError):
        limit = 0
    if limit <= 0:
        raise ConfigError(f"{GIB_VARIABLE}: must be a positive number of GiB, got {text!r}")
    return Cache(folder, limit)


def _default_limit(folder: Path) -> int:
    """Returns the limit for a folder, which may hold copies already."""
    own = sum(path.stat().st_size for path in folder.glob("*/*")) if folder.is_dir() else 0
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    return int(min(DEFAULT_BYTES, DEFAULT_SHARE * (shutil.disk_usage(nearest).free + own)))
