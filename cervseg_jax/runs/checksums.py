"""Checksums of checkpoints: of every file on disk, and of every array in memory."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cervseg_jax.errors import CheckpointError
from cervseg_jax.files import write_json
from cervseg_jax.runtime.mesh import to_host

CHECKSUM_SUFFIX = ".sha256.json"


def digest(tree: Any, meta: Mapping[str, Any] | None = None) -> str:
    """Returns the SHA-256 over path, type, shape and bytes of every leaf, and over the metadata.

    Args:
      tree: a pytree of arrays.
      meta: JSON values.

    Returns:
      Hexadecimal text.
    """
    total = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = to_host(leaf)
        total.update(f"{jax.tree_util.keystr(path)}|{array.dtype}|{array.shape}|".encode())
        total.update(np.ascontiguousarray(array).data)
    total.update(json.dumps(dict(meta or {}), sort_keys=True).encode())
    return total.hexdigest()


def describe_leaves(tree: Any) -> dict[str, str]:
    """Returns type and shape of every leaf as text, by path."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): f"{np.dtype(leaf.dtype)}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def check_leaves(actual: Mapping[str, str], expected: Mapping[str, str]) -> None:
    """Compares two descriptions of leaves; Orbax would cast types without an error.

    Raises:
      CheckpointError: naming the first leaf that differs.
    """
    for path in sorted(actual.keys() | expected.keys()):
        if actual.get(path) != expected.get(path):
            raise CheckpointError(
                f"is of another model: {path} is {actual.get(path, 'absent')}, "
                f"the config needs {expected.get(path, 'none of that name')}"
            )


def write_checksums(folder: Path) -> None:
    """Writes the checksums of each complete checkpoint that has none, and removes those of deleted checkpoints.

    Args:
      folder: the folder of checkpoints; the checksums of `folder/<number>` go to `<number>.sha256.json` beside it.
    """
    complete = {path.name: path for path in folder.iterdir() if path.name.isdigit() and path.is_dir()}
    for name, path in complete.items():
        file = folder / f"{name}{CHECKSUM_SUFFIX}"
        if not file.exists():
            write_json(file, _file_hashes(path))
    for file in folder.glob(f"*{CHECKSUM_SUFFIX}"):
        if file.name.removesuffix(CHECKSUM_SUFFIX) not in complete:
            file.unlink(missing_ok=True)


def check_files(folder: Path, number: int) -> None:
    """Compares a checkpoint's files with their checksums; a checkpoint without checksums passes.

    Raises:
      CheckpointError: naming the first file that differs.
    """
    file = folder / f"{number}{CHECKSUM_SUFFIX}"
    if not file.exists():
        return
    try:
        expected = json.loads(file.read_text())
    except ValueError:
        raise CheckpointError(f"{file.name} is damaged") from None
    actual = _file_hashes(folder / str(number))
    for name in sorted(expected.keys() | actual.keys()):
        if expected.get(name) != actual.get(name):
            problem = (
                "is missing" if name not in actual else "is damaged" if name in expected else "does not belong here"
            )
            raise CheckpointError(f"the file {name} {problem}")


def _file_hashes(folder: Path) -> dict[str, str]:
    hashes = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                hashes[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes
