"""Runs in a bucket of Cloud Storage.

Commands work on local folders. `local_copy` downloads a run that is in a bucket and uploads the files that change:
during training before each save, and at the end. Checkpoints are not copied: all processes write them to the bucket
directly.
"""

import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from cervseg_jax.console import short_path
from cervseg_jax.errors import CervsegError, ConfigError
from cervseg_jax.extras import install_command
from cervseg_jax.pretrained_weights import find_run

SCHEME = "gs"
STATES = "checkpoints"
"""Folder of the checkpoints in a run; never copied."""

_NOT_COPIED = frozenset({STATES, "run.lock"})
_PREFIX = "cervseg-jax-bucket-"
_UPLOADED_LAST = "contract.json"
"""Refers to a weights file, which must be complete first."""


def _nothing_to_publish() -> None:
    """Does nothing: the files of a local run are where they belong."""


class LocalRun(NamedTuple):
    """A run folder on this machine: the run itself, or a copy of one in a bucket."""

    folder: Path
    address: str | None = None
    """Address of the run if it is in a bucket, such as `gs://mine/runs/a`."""
    publish: Callable[[], None] = _nothing_to_publish
    """Uploads files that have changed."""

    def subrun(self, name: str) -> "LocalRun":
        """Returns a run in a folder of this one."""
        address = None if self.address is None else f"{self.address}/{name}"
        return LocalRun(self.folder / name, address, self.publish)

    def display_path(self, path: Path) -> str:
        """Returns a path as messages show it: an address for a file of a run in a bucket.

        Example:
          >>> LocalRun(Path("/tmp/copy/a"), "gs://mine/runs/a").display_path(Path("/tmp/copy/a/best"))
          'gs://mine/runs/a/best'
        """
        if self.address is None or not path.is_relative_to(self.folder):
            return short_path(path)
        inside = path.relative_to(self.folder).as_posix()
        return self.address if inside == "." else f"{self.address}/{inside}"


def is_address(path: Path) -> bool:
    """Returns whether a path is an address such as `gs://mine/runs/a`.

    Example:
      >>> is_address(Path("gs://mine/runs/a")), is_address(Path("runs/a"))
      (True, False)
    """
    return path.parts[:1] == (f"{SCHEME}:",)


def format_address(path: Path) -> str:
    """Returns an address as text; `Path` drops one of its slashes.

    Example:
      >>> format_address(Path("gs://mine/runs/a"))
      'gs://mine/runs/a'
    """
    return f"{SCHEME}://{'/'.join(path.parts[1:])}"


def exists(path: Path) -> bool:
    """Returns whether a folder or file exists, in a bucket or on this machine.

    Raises:
      ConfigError: if the bucket cannot be read.
    """
    if not is_address(path):
        return path.exists()
    address = format_address(path)
    with _translate_errors(address, "read"):
        return _file_system().exists(address)


@contextmanager
def local_copy(path: Path, *, is_primary: bool = True) -> Iterator[LocalRun]:
    """Yields a local folder for a run, downloading it if it is in a bucket.

    Changed files are uploaded at the end of the block, also after a `CervsegError`, whose message then names the
    address instead of the folder.

    Args:
      path: a folder, an address in a bucket, or the name of built-in weights.
      is_primary: whether this process copies files; all other processes get an empty folder to work in.

    Yields:
      The run.

    Raises:
      ConfigError: if the bucket cannot be read or written.
    """
    if not is_address(path):
        yield LocalRun(find_run(path))
        return
    address = format_address(path)
    if len(path.parts) < 3:
        raise ConfigError(f"{address}: names a bucket; a run needs a folder in it, such as gs://mine/runs/a")
    with tempfile.TemporaryDirectory(prefix=_PREFIX, ignore_cleanup_errors=True) as parent:
        copy = _Copy(Path(parent, path.name), address)
        if not is_primary:
            yield LocalRun(copy.folder, address)
            return
        copy.fetch()
        try:
            yield LocalRun(copy.folder, address, copy.publish)
        except CervsegError as error:
            with suppress(CervsegError):  # the first error is the one to report
                copy.publish()
            error.args = (str(error).replace(str(copy.folder), copy.address),)
            raise
        copy.publish()


@contextmanager
def local_copies(paths: Sequence[Path]) -> Iterator[list[LocalRun]]:
    """Yields local folders for several runs, as `local_copy` does for one."""
    with ExitStack() as stack:
        yield [stack.enter_context(local_copy(path)) for path in paths]


class _Copy:
    """A local folder and its state in the bucket."""

    def __init__(self, folder: Path, address: str) -> None:
        self.folder = folder
        self.address = address
        self._published: dict[str, tuple[int, int]] = {}

    def fetch(self) -> None:
        """Downloads all files."""
        with _translate_errors(self.address, "read"):
            system = _file_system()
            root = self.address.removeprefix(f"{SCHEME}://")
            names = [path.removeprefix(f"{root}/") for path in system.find(root)]
            names = [name for name in names if _NOT_COPIED.isdisjoint(name.split("/"))]
            if names:
                self.folder.mkdir(parents=True)
                system.get(self._remote(names), self._local(names))
        self._published = self._stamps()

    def publish(self) -> None:
        """Uploads new and changed files, then deletes files from the bucket that were deleted here."""
        stamps = self._stamps()
        changed = [name for name, stamp in stamps.items() if self._published.get(name) != stamp]
        deleted = [name for name in self._published if name not in stamps]
        with _translate_errors(self.address, "written"):
            for is_last in (False, True):
                names = [name for name in changed if name.endswith(_UPLOADED_LAST) == is_last]
                if names:
                    _file_system().put(self._local(names), self._remote(names))
            if deleted:
                _file_system().rm(self._remote(deleted))
        self._published = stamps

    def _stamps(self) -> dict[str, tuple[int, int]]:
        """Returns modification time and size of each file."""
        stamps = {}
        for path in self.folder.rglob("*"):
            name = path.relative_to(self.folder).as_posix()
            if path.is_file() and _NOT_COPIED.isdisjoint(name.split("/")):
                status = path.stat()
                stamps[name] = status.st_mtime_ns, status.st_size
        return stamps

    def _local(self, names: Sequence[str]) -> list[str]:
        return [str(self.folder / name) for name in names]

    def _remote(self, names: Sequence[str]) -> list[str]:
        return [f"{self.address}/{name}" for name in names]


def _file_system() -> Any:
    """Returns fsspec's file system for buckets, without listing caches, because other machines write too."""
    try:
        import fsspec.config
        import gcsfs  # pyright: ignore  # noqa: F401
    except ImportError:
        raise ConfigError(f"runs in a bucket need an extra: {install_command('bucket')}") from None
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # failures are reported by one message
    fsspec.config.conf["gcs"] = {"use_listings_cache": False}  # for the file system that Orbax makes
    return fsspec.filesystem("gcs", use_listings_cache=False)


@contextmanager
def _translate_errors(address: str, verb: str) -> Iterator[None]:
    """Translates errors of the client, which are of many types, into one message."""
    try:
        yield
    except CervsegError:
        raise
    except Exception as error:  # noqa: BLE001
        text = str(error).strip().splitlines()
        raise ConfigError(
            f"{address}: cannot be {verb}: {text[0] if text else type(error).__name__}; does the bucket exist, and may "
            "this machine access it (gcloud auth application-default login)?"
        ) from None
