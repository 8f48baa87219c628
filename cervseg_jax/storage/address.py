"""Addresses of files in buckets and on web servers, as paths."""

import fnmatch
import os
import stat
from collections.abc import Iterator
from pathlib import Path, PosixPath
from typing import Any

from cervseg_jax.errors import ConfigError
from cervseg_jax.storage import store
from cervseg_jax.storage.store import SCHEMES, Entry

OTHER_SCHEMES = frozenset({"az", "hdfs", "abfs", "ftp", "sftp"})
"""Schemes of addresses that are not read."""


class Address(PosixPath):
    """A path whose file is in a bucket or on a web server, such as `gs://mine/data/a.png`.

    Names are taken apart and joined as those of other paths. Files are read as they are now, and folders exist while
    they hold files. What `iterdir` yields remembers what the list said about it, as `os.DirEntry` does, and does not
    ask again.
    """

    _listed: Entry | None = None

    @property
    def scheme(self) -> str:
        """A key of `SCHEMES`."""
        return self.parts[0][:-1]

    @property
    def is_on_web_server(self) -> bool:
        """Whether files can be read only."""
        return SCHEMES[self.scheme].is_web

    @property
    def key(self) -> str:
        """The address without its scheme."""
        return "/".join(self.parts[1:])

    def __str__(self) -> str:
        """Returns the address; `Path` would drop one of its slashes."""
        return f"{self.scheme}://{self.key}" if self.parts else "."

    def absolute(self) -> "Address":
        """Returns the address itself."""
        return self

    def resolve(self, strict: bool = False) -> "Address":
        """Returns the address without `..`; there are no links."""
        parts: list[str] = []
        for part in self.parts:
            if part != "..":
                parts.append(part)
            elif len(parts) > 2:
                parts.pop()
        return self if len(parts) == len(self.parts) else Address(*parts)

    def relative_to(self, *other: Any, **options: Any) -> Path:  # pyright: ignore
        """Returns the rest of the address below a folder, as a path without a scheme."""
        return Path(*super().relative_to(*other, **options).parts)

    def entry(self, *, refresh: bool = False) -> Entry:
        """Returns what the store says about the file or folder.

        Args:
          refresh: ask again, although a list or an earlier question told.

        Raises:
          FileNotFoundError: if there is none.
          StoreError: if the store refuses or cannot be reached.
        """
        known = self._listed
        if known is None or refresh or not (known.is_folder or known.version):
            known = self._listed = self._ask()
        return known

    def _ask(self) -> Entry:
        return store.describe(self.scheme, self.key)

    def exists(self, **_: Any) -> bool:
        """Whether there is such a file or folder."""
        try:
            return bool(self._listed or self._ask())
        except FileNotFoundError:
            return False

    def is_file(self, **_: Any) -> bool:
        """Whether there is such a file."""
        return self._is_folder() is False

    def is_dir(self, **_: Any) -> bool:
        """Whether there is such a folder."""
        return self._is_folder() is True

    def is_symlink(self) -> bool:
        """Returns False."""
        return False

    def _is_folder(self) -> bool | None:
        try:
            return (self._listed or self._ask()).is_folder
        except FileNotFoundError:
            store.require_bucket(self.scheme, self.parts[1])
            return None

    def stat(self, **_: Any) -> os.stat_result:
        """Returns kind and size; the other values are 0."""
        entry = self.entry()
        kind = stat.S_IFDIR if entry.is_folder else stat.S_IFREG
        return os.stat_result((kind, 0, 0, 1, 0, 0, entry.size or 0, 0, 0, 0))

    def iterdir(self) -> Iterator["Address"]:  # pyright: ignore
        """Yields files and folders; each remembers what the list says about it."""
        for name, entry in store.list_folder(self.scheme, self.key).items():
            path = self / name
            path._listed = entry
            yield path

    def glob(self, pattern: str, **_: Any) -> Iterator["Address"]:  # pyright: ignore
        """Yields those of `iterdir` whose names fit a pattern; none if there is no folder."""
        try:
            listed = list(self.iterdir())
        except FileNotFoundError:
            listed = []
        return (path for path in listed if fnmatch.fnmatchcase(path.name, pattern))

    def rglob(self, pattern: str, **_: Any) -> Iterator["Address"]:  # pyright: ignore
        """Yields files and folders whose names fit a pattern, at any depth."""
        for path in self.iterdir():
            if fnmatch.fnmatchcase(path.name, pattern):
                yield path
            if path.is_dir():
                yield from path.rglob(pattern)

    def files(self) -> list["Address"]:
        """Returns all files below a folder, of one list where the store makes one; none if there is no folder.

        Raises:
          NotADirectoryError: if it is a file.
          StoreError: if there is no such bucket, it refuses or cannot be reached.
        """
        found = []
        for name, entry in store.list_tree(self.scheme, self.key).items():
            path = self / name
            path._listed = entry
            found.append(path)
        return found

    def for_client(self) -> str:
        """Returns the address as text, for a library that reads and writes there through fsspec by itself."""
        store.share_file_system(self.scheme)
        return str(self)

    def read_bytes(self) -> bytes:
        """Reads the file as it is now; see `cached.read_file` for images, which do not change."""
        return store.read(self.scheme, self.key)

    def read_range(self, start: int, end: int) -> bytes:
        """Reads the bytes from `start` up to `end`, also where a web server sends everything."""
        data = store.read(self.scheme, self.key, start=start, end=end)
        return data if len(data) <= end - start else data[start:end]

    def read_text(self, encoding: str | None = None, errors: str | None = None, **_: Any) -> str:
        """Reads the file as it is now, as text in UTF-8."""
        return self.read_bytes().decode(encoding or "utf-8", errors or "strict")

    def write_bytes(self, data: Any) -> int:
        """Writes the file; it appears complete or not at all."""
        store.write(self.scheme, self.key, bytes(data))
        return len(data)

    def write_text(self, data: str, encoding: str | None = None, errors: str | None = None, **_: Any) -> int:  # pyright: ignore
        """Writes text in UTF-8."""
        return self.write_bytes(data.encode(encoding or "utf-8", errors or "strict"))

    def touch(self, mode: int = 0o666, exist_ok: bool = True) -> None:
        """Writes an empty file."""
        self.write_bytes(b"")

    def unlink(self, missing_ok: bool = False) -> None:
        """Deletes the file."""
        try:
            store.delete(self.scheme, self.key)
        except FileNotFoundError:
            if not missing_ok:
                raise


def as_path(given: str | os.PathLike[str]) -> Path:
    """Returns a path for what a user or a file names: an `Address` where it is one.

    Raises:
      ConfigError: for an address that is not read, or without a bucket.

    Example:
      >>> str(as_path(Path("gs://mine/data") / "a.png")), as_path("data/a.png")
      ('gs://mine/data/a.png', PosixPath('data/a.png'))
    """
    path = given if isinstance(given, Path) else Path(given)
    scheme = path.parts[0][:-1] if path.parts and path.parts[0].endswith(":") else ""
    if scheme in OTHER_SCHEMES:
        raise ConfigError(
            f"{scheme}://{'/'.join(path.parts[1:])}: {scheme}:// addresses are not read; known are "
            f"{', '.join(f'{name}://' for name in SCHEMES)}"
        )
    if isinstance(path, Address) or scheme not in SCHEMES:
        return path
    if len(path.parts) < 2:
        raise ConfigError(f"{scheme}://: names no bucket or server; an address is {scheme}://NAME/FOLDER")
    return Address(path)
