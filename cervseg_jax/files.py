"""Reads and writes files. Writes are atomic: a file appears under its name complete, or not at all."""

import contextlib
import functools
import hashlib
import json
import os
import re
import shutil
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from cervseg_jax.errors import CervsegError, ConfigError, DataError
from cervseg_jax.storage.address import OTHER_SCHEMES, Address
from cervseg_jax.storage.store import SCHEMES

TEMPORARY_PREFIX = ".cervseg-"
"""Names of temporary files and folders begin with this, the machine and the process number."""
ABANDONED_SECONDS = 86_400
"""Temporary files of other machines that nobody has written to for this long are removed."""

_STARTED = f"{time.time_ns():x}"


def make_folder(path: Path) -> Path:
    """Creates a folder with its parents; those of addresses come with their first file.

    Raises:
      ConfigError: if that is impossible.
    """
    if isinstance(path, Address):
        return path
    refuse_address(path)  # would become a folder of that name
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{path}: the folder cannot be made: {error.strerror}") from None
    return path


def refuse_address(path: Path) -> None:
    """Makes sure that a path is on this machine.

    Raises:
      ConfigError: if it is the address of a bucket or web server.
    """
    schemes = {f"{name}:" for name in (*SCHEMES, *OTHER_SCHEMES)}
    start = next((index for index, part in enumerate(path.parts) if part in schemes), None)
    if start is not None:
        address = f"{path.parts[start]}//{'/'.join(path.parts[start + 1 :])}"
        raise ConfigError(
            f"{address}: is not on this machine; here a folder is needed (runs may be at gs://, and what `infer` "
            "writes in any bucket); write to one and copy it"
        )


def refuse_filled_folder(path: Path, *, shown: str) -> None:
    """Makes sure that `path` is free for new files: missing, or an empty folder.

    Args:
      path: the folder.
      shown: how the message names it, with its option.

    Raises:
      ConfigError: if something is there.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(f"{shown} exists and is not an empty folder; choose another one")


def write_bytes(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Writes a file under a temporary name and renames it.

    Args:
      path: the file.
      data: its content.
      durable: wait until it is on the disk; too slow for many files that can be made again.

    Raises:
      OSError: if the disk is full or the folder not writable; an earlier file stays as it was.
    """
    _write_pieces(path, [data], durable=durable)


@functools.cache
def _machine() -> str:
    """Returns a short name of this machine, or container, since it was started: where process numbers are unique."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:
        boot = ""  # not Linux
    return sha256_of(f"{socket.gethostname()} {boot}".encode())[:8]


def temporary_name(kind: str = "tmp") -> str:
    """Returns a hidden name of this process and thread, which `remove_stale_temporaries` knows; under 90 bytes."""
    own = f"{_machine()}-{os.getpid()}-{_STARTED}-{threading.get_ident():x}-{time.monotonic_ns():x}"
    return f"{TEMPORARY_PREFIX}{own}.{kind}"


def remove_stale_temporaries(folder: Path) -> int:
    """Removes what killed processes of this program left: files and folders named by `temporary_name`.

    Those of processes that still run are kept. Whether a process of another machine runs cannot be seen: its files are
    kept for a day after they were last written.

    Args:
      folder: an output folder, which several processes and machines may share; it and the folders directly in it are
        searched. It may be missing.

    Returns:
      How many were removed.
    """
    if isinstance(folder, Address) or not folder.is_dir():
        return 0
    removed = 0
    for place in (folder, *(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())):
        for path in list(place.glob(f"{TEMPORARY_PREFIX}*")) if place.is_dir() else ():
            if _is_stale(path):
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
                removed += 1
    return removed


def _is_stale(path: Path) -> bool:
    pattern = rf"{re.escape(TEMPORARY_PREFIX)}([0-9a-f]{{8}})-(\d+)-([0-9a-f]+)-[0-9a-f]+-[0-9a-f]+\.\w+"
    match = re.fullmatch(pattern, path.name)
    if match is None:
        return False
    if match[1] != _machine():
        try:
            return time.time() - path.stat().st_mtime > ABANDONED_SECONDS
        except OSError:
            return False  # its process has just renamed it
    pid = int(match[2])
    if pid == os.getpid():
        return match[3] != _STARTED  # containers give the same number again and again
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        return False  # another user's process
    return pid == 0


def _write_pieces(path: Path, pieces: Iterable[bytes], *, durable: bool) -> None:
    if isinstance(path, Address):
        path.write_bytes(b"".join(pieces))
        return
    temporary = path.with_name(temporary_name())
    try:
        with temporary.open("wb") as file:
            file.writelines(pieces)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.filename is None:  # a full disk is noticed while writing, where Python knows no name
            error.filename = str(path)
        raise


def remove_folder(folder: Path) -> None:
    """Removes a folder of our own with its files; files that cannot be removed stay."""
    if not isinstance(folder, Address):
        shutil.rmtree(folder, ignore_errors=True)
        return
    with contextlib.suppress(FileNotFoundError):
        for path in list(folder.iterdir()):
            remove_folder(path) if path.is_dir() else path.unlink(missing_ok=True)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary name for a file that a library writes, and renames it to `path` if the block succeeds."""
    temporary = path.with_name(temporary_name())
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sha256_of(data: bytes) -> str:
    """Returns the SHA-256 of some bytes as hexadecimal text."""
    return hashlib.sha256(data).hexdigest()


def write_text(path: Path, text: str | Iterable[str], *, durable: bool = True) -> None:
    """Writes UTF-8 text as `write_bytes` does, whole or in pieces; file names that are no UTF-8 keep their bytes."""
    pieces = [text] if isinstance(text, str) else text
    _write_pieces(path, (piece.encode("utf-8", "surrogateescape") for piece in pieces), durable=durable)


def read_text(path: Path) -> str:
    """Reads what `write_text` wrote."""
    return path.read_bytes().decode("utf-8", "surrogateescape")


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON as `write_bytes` does; NaN becomes null, as JSON knows none."""
    write_text(path, json.dumps(_without_nan(value), indent=2, allow_nan=False) + "\n")


def read_json_object(path: Path, *, error: type[CervsegError] = DataError) -> dict[str, Any]:
    """Reads a JSON object as `write_json` writes it; NaN, which other programs write, becomes None.

    Raises:
      CervsegError: of class `error`, if the file cannot be read or holds something else.
    """
    try:
        content = json.loads(path.read_bytes(), parse_constant=lambda _: None)
    except OSError as problem:
        raise error(f"{path}: cannot be read: {problem.strerror}") from None
    except (ValueError, RecursionError) as problem:
        raise error(f"{path}: is damaged: {problem}") from None
    if not isinstance(content, dict):
        raise error(f"{path}: is damaged: must hold a JSON object, got {type(content).__name__}")
    return content


def png_bytes(image: np.ndarray) -> bytes:
    """Returns the content of a PNG file.

    Args:
      image: uint8 or uint16, [h, w] gray or [h, w, 3] RGB.
    """
    if image.dtype not in (np.uint8, np.uint16):
        raise TypeError(f"png_bytes: image must be uint8 or uint16, got {image.dtype}")
    _, packed = cv2.imencode(".png", image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    return packed.tobytes()


def write_png(path: Path, image: np.ndarray) -> None:
    """Writes a PNG, see `png_bytes`."""
    write_bytes(path, png_bytes(image), durable=False)


def write_tiff(path: Path, image: np.ndarray) -> None:
    """Writes a compressed TIFF.

    Args:
      path: the file.
      image: uint8, uint16 or int32, [h, w].
    """
    _, packed = cv2.imencode(".tif", image)
    write_bytes(path, packed.tobytes(), durable=False)


def write_labels(folder: Path, name: str, labels: np.ndarray) -> None:
    """Writes instance labels, integers [h, w]: a PNG of 16 bits, or a TIFF of 32 bits where that is too little."""
    if labels.max(initial=0) <= np.iinfo(np.uint16).max:
        write_png(folder / f"{name}.png", labels.astype(np.uint16))
    else:
        write_tiff(folder / f"{name}.tif", labels)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
