"""Runs at addresses.

Commands work on local folders. `local_copy` downloads a run that is at an address and uploads the files that change:
during training before each save, and at the end. Checkpoints are not copied: all processes write them to the bucket
directly.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from cervseg_jax.console import short_path
from cervseg_jax.errors import CervsegError, ConfigError
from cervseg_jax.pretrained_weights import find_run
from cervseg_jax.storage.address import Address, as_path
from cervseg_jax.storage.cached import PIECE_BYTES, local_file, map_parallel

STATES = "checkpoints"
"""Folder of the checkpoints in a run; never copied."""

_NOT_COPIED = frozenset({STATES, "run.lock"})
_PREFIX = "cervseg-jax-bucket-"
_UPLOADED_LAST = "contract.json"
"""Refers to a weights file, which must be complete first."""


def _nothing_to_publish() -> None:
    """Does nothing: the files of a local run are where they belong."""


class LocalRun(NamedTuple):
    """A run folder on this machine: the run itself, or a copy of one at an address."""

    folder: Path
    address: Address | None = None
    """Address of the run if it has one, such as `gs://mine/runs/a`."""
    publish: Callable[[], None] = _nothing_to_publish
    """Uploads files that have changed."""

    def subrun(self, name: str) -> "LocalRun":
        """Returns a run in a folder of this one."""
        address = None if self.address is None else self.address / name
        return LocalRun(self.folder / name, address, self.publish)

    def display_path(self, path: Path) -> str:
        """Returns a path as messages show it: an address for a file of a run that has one.

        Example:
          >>> LocalRun(Path("/tmp/copy/a"), Address("gs:/mine/runs/a")).display_path(Path("/tmp/copy/a/best"))
          'gs://mine/runs/a/best'
        """
        if self.address is None or not path.is_relative_to(self.folder):
            return short_path(path)
        return str(self.address / path.relative_to(self.folder))


@contextmanager
def local_copy(path: Path, *, is_primary: bool = True) -> Iterator[LocalRun]:
    """Yields a local folder for a run, downloading it if it is at an address.

    Changed files are uploaded at the end of the block, also after a `CervsegError`, whose message then names the
    address instead of the folder.

    Args:
      path: a folder, an address, or the name of built-in weights.
      is_primary: whether this process copies files; all other processes get an empty folder to work in.

    Yields:
      The run.

    Raises:
      ConfigError: if a bucket cannot be read or written.
    """
    address = as_path(path)
    if not isinstance(address, Address):
        yield LocalRun(find_run(path))
        return
    if len(address.parts) < 3:
        raise ConfigError(f"{address}: names a bucket; a run needs a folder in it, such as {address}/runs/a")
    with tempfile.TemporaryDirectory(prefix=_PREFIX, ignore_cleanup_errors=True) as parent:
        copy = _Copy(Path(parent, address.name), address)
        if not is_primary:
            yield LocalRun(copy.folder, address)
            return
        copy.fetch()
        try:
            yield LocalRun(copy.folder, address, copy.publish)
        except CervsegError as error:
            with suppress(CervsegError):  # the first error is the one to report
                copy.publish()
            error.args = (str(error).replace(str(copy.folder), str(address)),)
            raise
        copy.publish()


@contextmanager
def local_copies(paths: Sequence[Path]) -> Iterator[list[LocalRun]]:
    """Yields local folders for several runs, as `local_copy` does for one."""
    with ExitStack() as stack:
        yield [stack.enter_context(local_copy(path)) for path in paths]


class _Copy:
    """A local folder and its state at the address."""

    def __init__(self, folder: Path, address: Address) -> None:
        self.folder = folder
        self.address = address
        self._published: dict[str, tuple[int, int]] = {}

    def fetch(self) -> None:
        """Downloads all files."""
        try:
            files = [path for path in self.address.files() if _is_copied(path.relative_to(self.address))]
            map_parallel(self._fetch, files, is_remote=True)
        except NotADirectoryError:
            raise ConfigError(f"{self.address}: is a file; a run is a folder") from None
        except FileNotFoundError as error:
            raise ConfigError(f"{error.filename}: was deleted while the run was read; try again") from None
        self._published = self._stamps()

    def _fetch(self, path: Address) -> None:
        local = self.folder / path.relative_to(self.address)
        local.parent.mkdir(parents=True, exist_ok=True)
        if (path.entry().size or 0) > PIECE_BYTES:
            shutil.copyfile(local_file(path), local)
        else:
            local.write_bytes(path.read_bytes())

    def publish(self) -> None:
        """Uploads new and changed files, then deletes files at the address that were deleted here."""
        stamps = self._stamps()
        changed = [name for name, stamp in stamps.items() if self._published.get(name) != stamp]
        deleted = [name for name in self._published if name not in stamps]
        for is_last in (False, True):
            names = [name for name in changed if name.endswith(_UPLOADED_LAST) == is_last]
            for is_large in (False, True):  # a large file is held in memory while it is uploaded
                chosen = [name for name in names if (stamps[name][1] > PIECE_BYTES) == is_large]
                map_parallel(self._upload, chosen, is_remote=not is_large)
        map_parallel(lambda name: (self.address / name).unlink(missing_ok=True), deleted, is_remote=True)
        self._published = stamps

    def _upload(self, name: str) -> None:
        (self.address / name).write_bytes((self.folder / name).read_bytes())

    def _stamps(self) -> dict[str, tuple[int, int]]:
        """Returns modification time and size of each file."""
        stamps = {}
        for path in self.folder.rglob("*"):
            name = path.relative_to(self.folder)
            if path.is_file() and _is_copied(name):
                status = path.stat()
                stamps[name.as_posix()] = status.st_mtime_ns, status.st_size
        return stamps


def _is_copied(name: Path) -> bool:
    return _NOT_COPIED.isdisjoint(name.parts)
