"""Resumable states on disk.

Orbax writes a step's folder under another name and renames it when complete. It does not notice later damage to
the content, casts types silently and returns False instead of failing; the seal (a SHA-256 of every leaf with its
path, type and shape) and the checks here close that.
"""

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from cervseg_jax.errors import CheckpointError
from cervseg_jax.training.state import TrainState

SEAL = "state_sha256"


class Restored(NamedTuple):
    """A state from disk, and what was saved beside it."""

    state: TrainState
    meta: dict[str, Any]


class Checkpoints:
    """The folder of resumable states; keeps the newest `keep`."""

    def __init__(self, folder: Path, *, keep: int) -> None:
        """Opens the folder, making it where it is missing.

        Args:
          folder: an absolute path.
          keep: number of states that are kept.
        """
        logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax narrates every save.
        self.folder = folder
        self._manager = ocp.CheckpointManager(
            folder,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                enable_async_checkpointing=True,
                # A folder that cannot be made in the background would hang the next save.
                async_options=ocp.AsyncOptions(timeout_secs=300, create_directories_asynchronously=False),
            ),
        )

    def save(self, number: int, state: TrainState, meta: dict[str, Any]) -> None:
        """Starts saving a state; a number that is on disk already is left as it is.

        Args:
          number: name of the state's folder; larger ones are newer.
          state: the state; it is copied to the host before this returns.
          meta: JSON values.

        Raises:
          CheckpointError: if this save, or the one before it in the background, failed.
        """
        if number in self._manager.all_steps():
            return
        sealed = json.loads(json.dumps(meta | {SEAL: digest(state)}, allow_nan=False))
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(sealed))  # pyright: ignore
        try:
            saved = self._manager.save(number, args=items, force=True)
        except Exception as error:  # noqa: BLE001 (Orbax raises many types)
            raise _unwritable(self.folder, error) from error
        if not saved:
            raise CheckpointError(f"{self.folder}: state {number} was not saved: a newer one is there already")

    def wait(self) -> None:
        """Waits until the last save is on disk.

        Raises:
          CheckpointError: if it failed.
        """
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except Exception as error:  # noqa: BLE001
            raise _unwritable(self.folder, error) from error

    def close(self) -> None:
        """Ends the background threads."""
        self._manager.close()

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
            try:
                restored = self._restore(number, target)
            except Exception as error:  # noqa: BLE001 (damage surfaces as almost any type)
                problems.append(f"state {number}: {_first_line(error)}")
                continue
            for problem in problems:
                warn(f"{self.folder}: {problem}; going back to state {number}")
            return restored
        if problems:
            raise CheckpointError(
                f"{self.folder}: no usable state:\n  " + "\n  ".join(problems) + "\nStart anew with --fresh"
            )
        return None

    def _restore(self, number: int, target: TrainState) -> Restored:
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), target
        )
        stored_types = self._manager.item_metadata(number)["state"].tree
        _check_types(stored_types, target)
        items = self._manager.restore(
            number,
            args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract), meta=ocp.args.JsonRestore()),  # pyright: ignore
        )
        state, meta = items["state"], items["meta"]
        if digest(state) != meta.pop(SEAL):
            raise CheckpointError("its content is damaged (checksum differs)")
        return Restored(state, meta)


def digest(tree: Any) -> str:
    """Returns the SHA-256 over path, type, shape and bytes of every leaf.

    Args:
      tree: a pytree of arrays.

    Returns:
      Hexadecimal text.
    """
    total = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(leaf)
        total.update(f"{jax.tree_util.keystr(path)}|{array.dtype}|{array.shape}|".encode())
        total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()


def _check_types(stored: Any, target: TrainState) -> None:
    """Compares shapes and types leaf by leaf; Orbax itself would cast."""
    found = {_plain_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(stored)}
    wanted = {_plain_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(target)}
    for path in sorted(found.keys() | wanted.keys()):
        if path not in wanted or path not in found:
            raise CheckpointError(f"is of another model: {path} is only in the {'file' if path in found else 'config'}")
        old, new = found[path], wanted[path]
        if tuple(old.shape) != tuple(new.shape) or np.dtype(old.dtype) != np.dtype(new.dtype):
            raise CheckpointError(
                f"is of another model: {path} is {old.dtype}{list(old.shape)}, "
                f"the config needs {new.dtype}{list(new.shape)}"
            )


def _plain_path(path: Any) -> str:
    """Joins a key path to text that is the same for dataclasses, named tuples and the dicts Orbax stores."""
    names = [getattr(key, "name", getattr(key, "key", getattr(key, "idx", None))) for key in path]
    return ".".join(str(name) for name in names)


def _unwritable(folder: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{folder}: the state could not be saved: {_first_line(error)}; earlier states are kept")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
