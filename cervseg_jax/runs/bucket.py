"""Runs in a bucket of Cloud Storage.

Commands read and write folders. For a run in a bucket they get a copy of it on this machine, and what changes there is
written back: while training before each save, and at the end. Resumable states are not copied: all processes write
them to the bucket itself. The path of a copy holds the address that it stands for, so that files in it can be named
by it.
"""

import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from cervseg_jax.errors import CervsegError, ConfigError

SCHEME = "gs"
STATES = "checkpoints"
"""The folder of resumable states in a run; never copied."""

_NOT_COPIED = frozenset({STATES, "run.lock"})
_PREFIX = "cervseg-jax-bucket-"
_REPLACED_LAST = "contract.json"
"""Names the weights that belong to it."""


class LocalRun(NamedTuple):
    """A run on this machine."""

    folder: Path
    publish: Callable[[], None]
    """Writes what has changed to where the run lives; does nothing for a run that lives in a folder."""


def is_address(path: Path) -> bool:
    """Whether a path that a user has given is an address such as `gs://mine/runs/a`.

    Example:
      >>> is_address(Path("gs://mine/runs/a")), is_address(Path("runs/a"))
      (True, False)
    """
    return path.parts[:1] == (f"{SCHEME}:",)


def address_of(path: Path) -> str | None:
    """Returns the address of a path in a copy, or of one that a user has given; None for any other path.

    Example:
      >>> address_of(Path("gs://mine/runs/a"))
      'gs://mine/runs/a'
      >>> address_of(Path("/tmp/cervseg-jax-bucket-k2j/gs/mine/runs/a/best"))
      'gs://mine/runs/a/best'
    """
    if is_address(path):
        return f"{SCHEME}://{'/'.join(path.parts[1:])}"
    inside = [number for number, part in enumerate(path.parts) if part.startswith(_PREFIX)]
    return f"{SCHEME}://{'/'.join(path.parts[inside[-1] + 2 :])}" if inside else None


def exists(path: Path) -> bool:
    """Whether a folder or file is there, in a bucket or on this machine.

    Raises:
      ConfigError: if the bucket cannot be read.
    """
    if not is_address(path):
        return path.exists()
    address = str(address_of(path))
    with _translate_errors(address, "read"):
        return _file_system().exists(address)


@contextmanager
def local_copy(path: Path, *, is_primary: bool = True) -> Iterator[LocalRun]:
    """Gives a run as a folder of this machine: itself, or a copy of what is in a bucket, until the end of the block.

    Args:
      path: a folder, or an address in a bucket.
      is_primary: whether this process copies; with several, the others get an empty folder to work in.

    Yields:
      The folder, and how changes get back; that happens at the end as well, also after an error that has a message.

    Raises:
      ConfigError: if the bucket cannot be read or written.
    """
    if not is_address(path):
        yield LocalRun(path, lambda: None)
        return
    if len(path.parts) < 3:
        raise ConfigError(f"{address_of(path)}: names a bucket; a run needs a folder in it, such as gs://mine/runs/a")
    with tempfile.TemporaryDirectory(prefix=_PREFIX, ignore_cleanup_errors=True) as top:
        copy = _Copy(Path(top, SCHEME, *path.parts[1:]), str(address_of(path)))
        if not is_primary:
            yield LocalRun(copy.folder, lambda: None)
            return
        copy.fetch()
        try:
            yield LocalRun(copy.folder, copy.publish)
        except CervsegError as error:
            with suppress(CervsegError):  # the first one counts
                copy.publish()
            error.args = (str(error).replace(str(copy.folder), copy.address),)
            raise
        copy.publish()


@contextmanager
def local_copies(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """Gives several runs as `local_copy` gives one; yields their folders."""
    with ExitStack() as stack:
        yield [stack.enter_context(local_copy(path)).folder for path in paths]


class _Copy:
    """A folder, and what of it is in the bucket already."""

    def __init__(self, folder: Path, address: str) -> None:
        self.folder = folder
        self.address = address
        self._published: dict[str, tuple[int, int]] = {}

    def fetch(self) -> None:
        """Copies all files from the bucket."""
        with _translate_errors(self.address, "read"):
            system = _file_system()
            root = self.address.removeprefix(f"{SCHEME}://")
            names = [path.removeprefix(f"{root}/") for path in system.find(root)]
            names = [name for name in names if _NOT_COPIED.isdisjoint(name.split("/"))]
            if names:
                self.folder.mkdir(parents=True)
                system.get(self._there(names), self._here(names))
        self._published = self._stamps()

    def publish(self) -> None:
        """Writes new and changed files to the bucket, then removes there what is gone here."""
        stamps = self._stamps()
        changed = [name for name, stamp in stamps.items() if self._published.get(name) != stamp]
        gone = [name for name in self._published if name not in stamps]
        with _translate_errors(self.address, "written"):
            for is_last in (False, True):
                names = [name for name in changed if name.endswith(_REPLACED_LAST) == is_last]
                if names:
                    _file_system().put(self._here(names), self._there(names))
            if gone:
                _file_system().rm(self._there(gone))
        self._published = stamps

    def _stamps(self) -> dict[str, tuple[int, int]]:
        """Returns time of change and size of each file."""
        stamps = {}
        for path in self.folder.rglob("*"):
            name = path.relative_to(self.folder).as_posix()
            if path.is_file() and _NOT_COPIED.isdisjoint(name.split("/")):
                status = path.stat()
                stamps[name] = status.st_mtime_ns, status.st_size
        return stamps

    def _here(self, names: Sequence[str]) -> list[str]:
        return [str(self.folder / name) for name in names]

    def _there(self, names: Sequence[str]) -> list[str]:
        return [f"{self.address}/{name}" for name in names]


def _file_system() -> Any:
    """Returns fsspec's view of buckets; without caches, as other machines write too."""
    try:
        import fsspec.config
        import gcsfs  # pyright: ignore  # noqa: F401
    except ImportError:
        raise ConfigError("runs in a bucket need the extra: pip install 'cervseg-jax[bucket]'") from None
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # what fails is one message here
    fsspec.config.conf["gcs"] = {"use_listings_cache": False}  # Orbax has a view of its own
    return fsspec.filesystem("gcs", use_listings_cache=False)


@contextmanager
def _translate_errors(address: str, verb: str) -> Iterator[None]:
    """Turns errors of the client, which are of many types, into one message."""
    try:
        yield
    except CervsegError:
        raise
    except Exception as error:  # noqa: BLE001
        text = str(error).strip().splitlines()
        raise ConfigError(
            f"{address}: cannot be {verb}: {text[0] if text else type(error).__name__}; does the bucket exist, and may "
            "this machine use it (gcloud auth application-default login)?"
        ) from None
