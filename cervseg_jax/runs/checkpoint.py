"""Resumable states on disk.

Orbax writes a state's folder under another name and renames it when complete. It does not notice later damage to
the content, casts types silently and returns False instead of failing. Two seals close that: the SHA-256 of every
file, written beside the folder when it is complete and checked before Orbax reads it, and the SHA-256 of every leaf
inside the stored meta data, for a state whose save ended just before its files could be sealed. In a bucket, which
keeps checksums of its files itself and knows no renaming, Orbax marks what is complete with a file, and the second
seal is the only one.
"""

import hashlib
import json
import logging
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from cervseg_jax.engine.state import TrainState
from cervseg_jax.errors import CheckpointError
from cervseg_jax.files import make_folder, write_json
from cervseg_jax.runs.bucket import address_of
from cervseg_jax.runtime.distributed import first_problem, is_primary, require_shared
from cervseg_jax.runtime.mesh import to_host

SEAL, LEAVES = "sha256", "leaves"
"""Keys that are stored beside the caller's meta data."""

CHECKSUM_SUFFIX = ".sha256.json"


class Restored(NamedTuple):
    """A state from disk, and what was saved beside it."""

    state: TrainState
    meta: dict[str, Any]


class Checkpoints:
    """The folder of resumable states."""

    def __init__(self, folder: Path, *, keep: int, keep_multiples_of: int | None = None) -> None:
        """Opens the folder, making it where it is missing.

        Args:
          folder: an absolute path; that of a bucket's copy stands for the bucket, where the states are written.
          keep: number of states that are kept.
          keep_multiples_of: states whose number this divides are kept as well.

        Raises:
          ConfigError: if the folder cannot be made.
          CheckpointError: if it cannot be used.
        """
        _silence_orbax()
        self.folder = folder
        address = address_of(folder)
        self._is_local = address is None
        self._name = address or str(folder)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            keep_period=keep_multiples_of,
            enable_async_checkpointing=True,
            # A folder that cannot be made in the background would hang the next save.
            async_options=ocp.AsyncOptions(timeout_secs=300, create_directories_asynchronously=False),
        )
        if self._is_local:
            require_shared(make_folder(folder))
        try:
            self._manager = ocp.CheckpointManager(self._name, options=options)
        except Exception as error:  # noqa: BLE001 (Orbax raises many types)
            raise CheckpointError(f"{self._name}: states cannot be kept there: {_first_line(error)}") from error
        self._damaged: set[int] = set()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="seal")
        self._under_way: Future[None] | None = None
        self._last_save = time.monotonic()

    def save(self, number: int, state: TrainState, meta: dict[str, Any]) -> None:
        """Starts saving a state; a number that is on disk already is left as it is, unless it was found damaged.

        Args:
          number: name of the state's folder; larger ones are newer.
          state: the state; it is copied to the host before this returns.
          meta: JSON values.

        Raises:
          CheckpointError: if this save, or the one before it in the background, failed.
        """
        self.wait()
        if number in self._damaged:
            self._remove(number)
        elif number in self._manager.all_steps():
            return
        if self._is_local:
            self._require_space(state)
        meta = json.loads(json.dumps(meta, allow_nan=False))
        sealed = meta | {SEAL: digest(state, meta), LEAVES: describe_leaves(state)}
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(sealed))  # pyright: ignore
        try:
            saved = self._manager.save(number, args=items, force=True)
        except Exception as error:  # noqa: BLE001 (Orbax raises many types)
            raise _unwritable(self._name, error) from error
        if not saved:
            raise CheckpointError(f"{self._name}: state {number} was not saved: a newer one is there already")
        self._under_way = self._pool.submit(self._finish)
        self._last_save = time.monotonic()

    def _remove(self, number: int) -> None:
        """Removes a damaged state and its seal, so that it can be saved anew."""
        if self._is_local and is_primary():
            (self.folder / f"{number}{CHECKSUM_SUFFIX}").unlink(missing_ok=True)
        try:
            self._manager.delete(number)
        except Exception as error:  # noqa: BLE001 (Orbax raises many types)
            raise _unwritable(self._name, error) from error
        self._damaged.remove(number)

    def _require_space(self, state: TrainState) -> None:
        """Makes sure that a state fits on the disk: Orbax would find out in the middle, with pages of tracebacks."""
        needed, free = sum(leaf.nbytes for leaf in jax.tree.leaves(state)), shutil.disk_usage(self.folder).free
        if free < needed:
            raise CheckpointError(
                f"{self.folder}: the state could not be saved: it takes {needed / 2**20:.1f} MiB, and the disk has "
                f"{free / 2**20:.1f} MiB left; earlier states are kept. With more room the same command goes on"
            )

    @property
    def is_empty(self) -> bool:
        """Whether no state was ever saved."""
        return not self._manager.all_steps()

    @property
    def age_seconds(self) -> float:
        """Time since the last save began, or these were opened."""
        return time.monotonic() - self._last_save

    def wait(self) -> None:
        """Waits until the last save is on disk.

        Raises:
          CheckpointError: if it failed.
        """
        under_way, self._under_way = self._under_way, None
        if under_way is None:
            return
        try:
            under_way.result()
        except Exception as error:  # noqa: BLE001
            raise _unwritable(self._name, error) from error

    def close(self) -> None:
        """Ends the background threads; a save that is under way is completed.

        Raises:
          CheckpointError: if it failed.
        """
        self._pool.shutdown()
        try:
            self._manager.close()
        except Exception as error:  # noqa: BLE001
            raise _unwritable(self._name, error) from error

    def _finish(self) -> None:
        self._manager.wait_until_finished()
        self._manager.check_for_errors()
        if is_primary() and self._is_local:
            write_checksums(self.folder)

    def restore_newest(self, target: TrainState, *, warn: Callable[[str], None]) -> Restored | None:
        """Loads the newest state that is whole.

        Args:
          target: a state with the wanted structure, types, shapes and placement.
          warn: called with a message for each damaged state that is passed over.

        Returns:
          The state, or None if nothing was ever saved.

        Raises:
          CheckpointError: if states are there but none can be used.
        """
        problems = []
        for number in sorted(self._manager.all_steps(), reverse=True):
            problem = first_problem(self._problem_of_files(number))
            try:
                restored = None if problem else self._restore(number, target)
            except Exception as error:  # noqa: BLE001 (damage surfaces as almost any type)
                restored, problem = None, _first_line(error)
            if restored is None:
                self._damaged.add(number)
                problems.append(f"state {number}: {problem}")
                continue
            for problem in problems:
                warn(f"{self._name}: {problem}; going back to state {number}")
            return restored
        if problems:
            raise CheckpointError(
                f"{self._name}: no usable state:\n  " + "\n  ".join(problems) + "\nStart anew with --fresh"
            )
        return None

    def _problem_of_files(self, number: int) -> str:
        try:
            if self._is_local:
                check_files(self.folder, number)
        except (CheckpointError, OSError) as error:
            return _first_line(error)
        return ""

    def _restore(self, number: int, target: TrainState) -> Restored:
        meta = self._manager.restore(number, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]  # pyright: ignore
        _check_leaves(meta.pop(LEAVES), describe_leaves(target))
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), target
        )
        items = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))  # pyright: ignore
        state = self._manager.restore(number, args=items)["state"]
        if digest(state, meta) != meta.pop(SEAL):
            raise CheckpointError("its content is damaged (checksum differs)")
        return Restored(state, meta)


class _WithoutAbandoned:
    """A hook for exceptions that nobody catches: not those of readers and writers that a failure has left behind."""

    def __init__(self, hook: Callable[[Any], Any]) -> None:
        self._hook = hook

    def __call__(self, problem: Any) -> None:
        if not (isinstance(problem.exc_value, RuntimeError) and str(problem.exc_value) == "Event loop is closed"):
            self._hook(problem)


def _silence_orbax() -> None:
    """Orbax narrates every save, and after a failure, which is one message here, tracebacks come as late as at exit."""
    if not isinstance(sys.unraisablehook, _WithoutAbandoned):
        sys.unraisablehook = _WithoutAbandoned(sys.unraisablehook)
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", r"coroutine '.*' was never awaited", RuntimeWarning)


def digest(tree: Any, meta: dict[str, Any] | None = None) -> str:
    """Returns the SHA-256 over path, type, shape and bytes of every leaf, and over the meta data.

    Args:
      tree: a pytree of arrays.
      meta: JSON values; the seal among them is left out.

    Returns:
      Hexadecimal text.
    """
    total = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = to_host(leaf)
        total.update(f"{jax.tree_util.keystr(path)}|{array.dtype}|{array.shape}|".encode())
        total.update(np.ascontiguousarray(array).data)
    facts = {key: value for key, value in (meta or {}).items() if key not in (SEAL, LEAVES)}
    total.update(json.dumps(facts, sort_keys=True).encode())
    return total.hexdigest()


def describe_leaves(tree: Any) -> dict[str, str]:
    """Returns type and shape of every leaf as text, by path."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): f"{np.dtype(leaf.dtype)}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _check_leaves(found: dict[str, str], wanted: dict[str, str]) -> None:
    """Compares leaf by leaf; Orbax itself would cast types."""
    for path in sorted(found.keys() | wanted.keys()):
        if found.get(path) != wanted.get(path):
            raise CheckpointError(
                f"is of another model: {path} is {found.get(path, 'absent')}, "
                f"the config needs {wanted.get(path, 'none of that name')}"
            )


def write_checksums(folder: Path) -> None:
    """Writes the checksums of each complete state that has none, and removes those of deleted states.

    Args:
      folder: the folder of states; each gets `<number>.sha256.json` beside it.
    """
    states = {path.name: path for path in folder.iterdir() if path.name.isdigit() and path.is_dir()}
    for number, path in states.items():
        seal = folder / f"{number}{CHECKSUM_SUFFIX}"
        if not seal.exists():
            write_json(seal, _file_hashes(path))
    for seal in folder.glob(f"*{CHECKSUM_SUFFIX}"):
        if seal.name.removesuffix(CHECKSUM_SUFFIX) not in states:
            seal.unlink(missing_ok=True)


def check_files(folder: Path, number: int) -> None:
    """Compares a state's files with their checksums; a state without checksums passes.

    Raises:
      CheckpointError: naming the first file that differs.
    """
    seal = folder / f"{number}{CHECKSUM_SUFFIX}"
    if not seal.exists():
        return
    try:
        wanted = json.loads(seal.read_text())
    except ValueError:
        raise CheckpointError(f"{seal.name} is damaged") from None
    found = _file_hashes(folder / str(number))
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            problem = "is missing" if name not in found else "is damaged" if name in wanted else "does not belong here"
            raise CheckpointError(f"the file {name} {problem}")


def _file_hashes(folder: Path) -> dict[str, str]:
    hashes = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                hashes[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes


def _unwritable(name: str, error: Exception) -> CheckpointError:
    hint = "; has another process ended?" if jax.process_count() > 1 else ""
    return CheckpointError(f"{name}: the state could not be saved: {_first_line(error)}{hint}; earlier states are kept")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
