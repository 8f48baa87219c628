"""Checkpoints: resumable states on disk.

Orbax writes a checkpoint under a temporary name and renames it when it is complete. It does not detect later damage
to the content, casts types silently, and returns False instead of failing. Two checksums cover that. The SHA-256 of
every file is written beside the folder once it is complete, and checked before Orbax reads the folder. The SHA-256
over all arrays is part of the stored metadata, for a checkpoint whose process ended before it could write the
checksums of the files. A bucket keeps checksums of its files itself and cannot rename: there Orbax marks a complete
checkpoint by a file, and the second checksum is the only one.
"""

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
import orbax.checkpoint as ocp

from cervseg_jax.engine.state import TrainState
from cervseg_jax.errors import CheckpointError, first_line
from cervseg_jax.files import make_folder
from cervseg_jax.runs.checksums import (
    CHECKSUM_SUFFIX,
    check_files,
    check_leaves,
    describe_leaves,
    digest,
    write_checksums,
)
from cervseg_jax.runs.retention import Retention
from cervseg_jax.runtime.distributed import first_problem, is_primary, require_shared
from cervseg_jax.storage.address import Address

CHECKSUM, LEAVES = "sha256", "leaves"
"""Keys that are stored in addition to the caller's metadata."""


class Restored(NamedTuple):
    """A state from disk and its metadata."""

    state: TrainState
    meta: dict[str, Any]


class Checkpoints:
    """The folder of checkpoints of a run."""

    def __init__(
        self,
        folder: Path,
        *,
        keep: int,
        keeps_forever: Callable[[dict[str, Any]], bool] | None = None,
        address: Address | None = None,
    ) -> None:
        """Opens the folder, creating it if it is missing.

        Args:
          folder: an absolute path.
          keep: number of newest checkpoints to keep.
          keeps_forever: whether to keep a checkpoint with this metadata in addition to the newest ones.
          address: where to keep the checkpoints of a run in a bucket, instead of the folder.

        Raises:
          ConfigError: if the folder cannot be created.
          CheckpointError: if it cannot be used.
        """
        _silence_orbax()
        self.folder = folder
        self._is_local = address is None
        self._name = str(folder) if address is None else address.for_client()
        self._retention = Retention(keep, keeps_forever)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._retention,
            enable_async_checkpointing=True,
            # If a folder could not be created in the background, the next save would hang.
            async_options=ocp.AsyncOptions(timeout_secs=300, create_directories_asynchronously=False),
        )
        if self._is_local:
            require_shared(make_folder(folder))
        try:
            self._manager = ocp.CheckpointManager(self._name, options=options)
        except Exception as error:  # noqa: BLE001 (Orbax raises many types)
            raise CheckpointError(f"{self._name}: checkpoints cannot be kept there: {first_line(error)}") from error
        self._damaged: set[int] = set()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checksums")
        self._pending: Future[None] | None = None
        self._last_save = time.monotonic()

    def save(self, number: int, state: TrainState, meta: dict[str, Any]) -> None:
        """Starts saving a checkpoint; one that exists already is left as it is, unless it was found damaged.

        Args:
          number: name of the checkpoint's folder; larger numbers are newer.
          state: the state; it is copied to the host before this returns.
          meta: JSON values.

        Raises:
          CheckpointError: if this save fails, or the previous one failed in the background.
        """
        self.wait()
        if number in self._damaged:
            self._remove(number)
        elif number in self._manager.all_steps():
            return
        if self._is_local:
            self._require_space(state)
        meta = json.loads(json.dumps(meta, allow_nan=False))
        stored = meta | {CHECKSUM: digest(state, meta), LEAVES: describe_leaves(state)}
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(stored))  # pyright: ignore
        self._retention.prepare(number, meta, self._manager.all_steps(), self._read_meta)
        try:
            saved = self._manager.save(number, args=items, force=True)
        except Exception as error:  # noqa: BLE001 (Orbax raises many types)
            raise _unwritable(self._name, error) from error
        if not saved:
            raise CheckpointError(f"{self._name}: state {number} was not saved: a newer one is there already")
        self._pending = self._pool.submit(self._finish)
        self._last_save = time.monotonic()

    def _remove(self, number: int) -> None:
        """Deletes a damaged checkpoint and its checksums, so that it can be saved again."""
        if self._is_local and is_primary():
            (self.folder / f"{number}{CHECKSUM_SUFFIX}").unlink(missing_ok=True)
        try:
            self._manager.delete(number)
        except Exception as error:  # noqa: BLE001 (Orbax raises many types)
            raise _unwritable(self._name, error) from error
        self._damaged.remove(number)

    def _require_space(self, state: TrainState) -> None:
        """Checks that a state fits on the disk; Orbax would fail in the middle, with pages of tracebacks."""
        needed, free = sum(leaf.nbytes for leaf in jax.tree.leaves(state)), shutil.disk_usage(self.folder).free
        if free < needed:
            raise CheckpointError(
                f"{self.folder}: the state could not be saved: it takes {needed / 2**20:.1f} MiB, and the disk has "
                f"{free / 2**20:.1f} MiB left; earlier states are kept. Free some space and run the same command again"
            )

    @property
    def is_empty(self) -> bool:
        """Whether there are no checkpoints."""
        return not self._manager.all_steps()

    @property
    def age_seconds(self) -> float:
        """Time since the last save began, or since the folder was opened."""
        return time.monotonic() - self._last_save

    def wait(self) -> None:
        """Waits until the last save is on disk.

        Raises:
          CheckpointError: if it failed.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            pending.result()
        except Exception as error:  # noqa: BLE001
            raise _unwritable(self._name, error) from error

    def close(self) -> None:
        """Ends the background threads after completing a pending save.

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
        """Loads the newest undamaged checkpoint.

        Args:
          target: a state with the expected structure, types, shapes and sharding.
          warn: called with a message for each damaged checkpoint that is skipped.

        Returns:
          The checkpoint, or None if there are none.

        Raises:
          CheckpointError: if there are checkpoints, but none can be used.
        """
        problems = []
        for number in sorted(self._manager.all_steps(), reverse=True):
            problem = first_problem(self._problem_of_files(number))
            try:
                restored = None if problem else self._restore(number, target)
            except Exception as error:  # noqa: BLE001 (damage surfaces as almost any type)
                restored, problem = None, first_line(error)
            if restored is None:
                self._damaged.add(number)
                problems.append(f"state {number}: {problem}")
                continue
            for problem in problems:
                warn(f"{self._name}: {problem}; going back to state {number}")
            return restored
        if problems:
            raise CheckpointError(
                f"{self._name}: no usable state:\n  " + "\n  ".join(problems) + "\nStart a new run with --fresh"
            )
        return None

    def _problem_of_files(self, number: int) -> str:
        try:
            if self._is_local:
                check_files(self.folder, number)
        except (CheckpointError, OSError) as error:
            return first_line(error)
        return ""

    def _read_meta(self, number: int) -> dict[str, Any]:
        return self._manager.restore(number, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]  # pyright: ignore

    def _restore(self, number: int, target: TrainState) -> Restored:
        meta = self._read_meta(number)
        check_leaves(meta.pop(LEAVES), describe_leaves(target))
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), target
        )
        items = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))  # pyright: ignore
        state = self._manager.restore(number, args=items)["state"]
        checksum = meta.pop(CHECKSUM)
        if digest(state, meta) != checksum:
            raise CheckpointError("its content is damaged (checksum differs)")
        return Restored(state, meta)


class _IgnoreClosedLoops:
    """Replaces `sys.unraisablehook`: ignores errors of Orbax' asynchronous tasks that outlive a failed save."""

    def __init__(self, hook: Callable[[Any], Any]) -> None:
        self._hook = hook

    def __call__(self, problem: Any) -> None:
        if not (isinstance(problem.exc_value, RuntimeError) and str(problem.exc_value) == "Event loop is closed"):
            self._hook(problem)


def _silence_orbax() -> None:
    """Silences Orbax' messages on every save, and the tracebacks that it prints until exit after a failed one."""
    if not isinstance(sys.unraisablehook, _IgnoreClosedLoops):
        sys.unraisablehook = _IgnoreClosedLoops(sys.unraisablehook)
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", r"coroutine '.*' was never awaited", RuntimeWarning)


def _unwritable(name: str, error: Exception) -> CheckpointError:
    hint = "; has another process ended?" if jax.process_count() > 1 else ""
    return CheckpointError(f"{name}: the state could not be saved: {first_line(error)}{hint}; earlier states are kept")
