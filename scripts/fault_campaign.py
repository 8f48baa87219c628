"""Fault injection for checkpoints: random damage and failing writes.

Damages the newest of two checkpoints (flips a bit; truncates, zeroes, deletes a file or replaces it by one of the other
checkpoint; empties a folder) or both, or limits the file size during a save. The restored state must be bit-equal to
the newest undamaged one; skipped checkpoints must be named in a warning; starting afresh silently is an error. Also
fails file system calls of a save (create, write, fsync, mkdir, rename, unlink, rmdir), either one call or all calls
from one on, with ENOSPC, EIO, EACCES or EROFS. This needs a C compiler (`cc`).

Run: python scripts/fault_campaign.py OUT [--damages 500] [--all-damaged 20] [--failed-writes 125] [--failed-calls 125]
  [--killed-calls 25] [--seed 0]
"""

import argparse
import collections
import contextlib
import ctypes
import errno
import io
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from cervseg_jax.engine.optimizer import make_optimizer
from cervseg_jax.engine.state import TrainState, create_state
from cervseg_jax.errors import CervsegError, CheckpointError
from cervseg_jax.files import make_folder
from cervseg_jax.runs.checkpoint import Checkpoints, Restored
from cervseg_jax.runs.checksums import digest

ERRORS = (errno.ENOSPC, errno.EIO, errno.EACCES, errno.EROFS)
HANG_SECONDS = 60
KINDS = ("flip", "cut", "zero", "delete", "foreign", "empty folder")


def main(arguments: Sequence[str]) -> None:
    """Runs the campaign and prints a table; exits with 1 if any outcome is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="a new folder")
    parser.add_argument("--damages", type=int, default=500)
    parser.add_argument("--all-damaged", type=int, default=20)
    parser.add_argument("--failed-writes", type=int, default=125)
    parser.add_argument("--failed-calls", type=int, default=125)
    parser.add_argument("--killed-calls", type=int, default=25)
    parser.add_argument(
        "--killed-at",
        type=int,
        help="save a checkpoint to OUT and kill the process at this file system call (internal)",
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.killed_at is not None:
        ctypes.CDLL(os.environ["LD_PRELOAD"]).fault_set(os.fsencode(options.out), options.killed_at, 0, 0)
        _save(options.out, (3,))
        return
    logging.disable(logging.ERROR)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writes beyond the limit fail instead
    out = make_folder(options.out.absolute())
    if options.failed_calls or options.killed_calls:
        _with_failing_calls(out)
    pristine = out / "pristine"
    _save(pristine, (1, 2))
    rows: dict[str, collections.Counter[str]] = {}
    for title, count, trial in (
        ("newest state damaged", options.damages, _newest_damaged),
        ("all states damaged", options.all_damaged, _all_damaged),
        ("writes fail during a save", options.failed_writes, _failed_write),
        ("calls fail during a save", options.failed_calls, _failed_call),
        ("killed at a call of a save", options.killed_calls, _killed_call),
    ):
        rows[title] = collections.Counter()
        for index in range(count):
            # Each trial has its own folder: threads of a failed save may keep writing for a moment.
            folder = out / f"{trial.__name__}-{index}"
            shutil.copytree(pristine, folder)
            outcome = trial(folder, np.random.default_rng((options.seed, index)))
            shutil.rmtree(folder, ignore_errors=True)
            rows[title][outcome] += 1
            if outcome.startswith("WRONG"):
                print(f"{title}, seed {options.seed}, trial {index}: {outcome}", file=sys.stderr)
    print("| fault | outcome | times |\n|---|---|---|")
    for title, outcomes in rows.items():
        for outcome, count in sorted(outcomes.items()):
            print(f"| {title} | {outcome} | {count} |")
    sys.exit(any(outcome.startswith("WRONG") for outcomes in rows.values() for outcome in outcomes))


def _newest_damaged(folder: Path, rng: np.random.Generator) -> str:
    kind = _damage(folder / "2", rng, other=folder / "1")
    restored, warnings = _restore(folder)
    if restored is None:
        return f"WRONG: {kind}: nothing was restored"
    step = int(restored.state.step)
    if not _is_saved(restored) or (step == 1) != any("state 2" in text for text in warnings):
        return f"WRONG: {kind}: state {step}, {warnings}"
    return "previous one restored, warning given" if step == 1 else "harmless: newest one restored"


def _all_damaged(folder: Path, rng: np.random.Generator) -> str:
    for number in ("1", "2"):
        shutil.rmtree(folder / number / "state" / "d", ignore_errors=True)
        _damage(folder / number, rng, other=folder / number, kinds=("cut", "zero", "delete"))
    try:
        restored, _ = _restore(folder)
    except CheckpointError as error:
        is_named = all(f"state {number}" in str(error) for number in (1, 2))
        return "error names each of them" if is_named else f"WRONG: {error}"
    return f"WRONG: {'fresh start' if restored is None else 'damage not detected'}"


def _failed_write(folder: Path, rng: np.random.Generator) -> str:
    largest = max(path.stat().st_size for path in (folder / "2").rglob("*") if path.is_file())
    limit = int(rng.integers(1, largest + 1))
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        outcome = _try_to_save(folder, CheckpointError)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    return _judged(folder, f"limit {limit}", outcome)


def _try_to_save(folder: Path, expected: type[CervsegError]) -> str:
    """Saves state 3 while a fault is active; a one-line message is the expected outcome."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            _save(folder, (3,))
    except expected as error:
        return "one-line error, previous one restored" if "\n" not in str(error) else f"WRONG: {error}"
    except Exception as error:  # noqa: BLE001 (any other type is a failure)
        return f"WRONG: {type(error).__name__}: {error}"
    return "saved despite the fault"


def _judged(folder: Path, name: str, outcome: str) -> str:
    """Returns the outcome of a save, or an error if the restored state is wrong."""
    restored, _ = _restore(folder)
    expected = 3 if outcome.startswith("saved") else 2
    if outcome.startswith("WRONG"):
        return f"{outcome} ({name})"
    if restored is None or not _is_saved(restored) or int(restored.state.step) < expected:
        return f"WRONG: {name}: {outcome}, then {restored and int(restored.state.step)}"
    return outcome


def _with_failing_calls(out: Path) -> None:
    """Restarts this program with the fault injection library preloaded, unless it already is."""
    library = out / "failing_calls.so"
    if os.environ.get("LD_PRELOAD") == str(library):
        return
    source = Path(__file__).with_name("failing_calls.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"], check=True)
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "LD_PRELOAD": str(library)})


def _calls_of_a_save(folder: Path) -> int:
    """Counts the file system calls of a save to a copy of `folder`."""
    library = ctypes.CDLL(os.environ["LD_PRELOAD"])
    spare = folder.with_name("spare")
    shutil.copytree(folder, spare)
    library.fault_set(os.fsencode(spare), 0, 0, 0)
    _save(spare, (3,))
    count = library.fault_count()
    library.fault_set(b"", 0, 0, 0)
    shutil.rmtree(spare)
    return count


def _killed_call(folder: Path, rng: np.random.Generator) -> str:
    at = int(rng.integers(1, _calls_of_a_save(folder) + 1))
    command = [sys.executable, __file__, str(folder), "--killed-at", str(at)]
    code = subprocess.run(command, capture_output=True, timeout=10 * HANG_SECONDS).returncode
    restored, _ = _restore(folder)
    if restored is None or not _is_saved(restored) or int(restored.state.step) < (2 if code else 3):
        return f"WRONG: call {at}: exit code {code}, then {restored and int(restored.state.step)}"
    return {2: "previous one restored", 3: "new one restored"}[int(restored.state.step)]


def _failed_call(folder: Path, rng: np.random.Generator) -> str:
    library = ctypes.CDLL(os.environ["LD_PRELOAD"])
    at = int(rng.integers(1, _calls_of_a_save(folder) + 1))
    error, is_sticky = int(rng.choice(ERRORS)), int(rng.integers(2))
    name = f"call {at}, {errno.errorcode[error]}{' and all later calls' if is_sticky else ''}"
    watchdog = threading.Timer(HANG_SECONDS, _report_hang, [name])
    watchdog.start()
    library.fault_set(os.fsencode(folder), at, error, is_sticky)
    try:
        outcome = _try_to_save(folder, CervsegError)
    finally:
        library.fault_set(b"", 0, 0, 0)
        watchdog.cancel()
    return _judged(folder, name, outcome)


def _report_hang(name: str) -> None:
    print(f"WRONG: {name}: no end after {HANG_SECONDS} s", file=sys.stderr, flush=True)
    os._exit(1)


def _damage(folder: Path, rng: np.random.Generator, *, other: Path, kinds: Sequence[str] = KINDS) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    path, kind = files[int(rng.integers(len(files)))], str(rng.choice(kinds))
    data = bytearray(path.read_bytes())
    if kind == "delete":
        path.unlink()
    elif kind == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif kind == "zero":
        path.write_bytes(bytes(len(data)))
    elif kind == "flip" and data:
        data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
    elif kind == "foreign":
        candidates = sorted(file for file in other.rglob("*") if file.is_file())
        path.write_bytes(candidates[int(rng.integers(len(candidates)))].read_bytes())
    elif kind == "empty folder":
        shutil.rmtree(path.parent)
        path.parent.mkdir()
    return f"{kind} {path.relative_to(folder)}"


def _state(step: int) -> TrainState:
    rng = np.random.default_rng(step)
    params = {"a/kernel": jnp.asarray(rng.normal(size=(64, 7)), jnp.float32), "a/bias": jnp.full(7, float(step))}
    state = create_state(params, {"n/mean": jnp.full(3, float(step))}, make_optimizer(clip_value=0.5))
    return TrainState(jnp.int32(step), state.params, state.model_state, state.opt_state, {})


def _save(folder: Path, steps: Sequence[int]) -> None:
    checkpoints = Checkpoints(folder, keep=2)
    finish: list[Callable[[], None]] = [checkpoints.wait, checkpoints.close]
    try:
        for step in steps:
            checkpoints.save(step, _state(step), {"epoch": step})
        finish.pop(0)()
    finally:
        with contextlib.suppress(CheckpointError):
            finish[-1]()


def _restore(folder: Path) -> tuple[Restored | None, list[str]]:
    warnings: list[str] = []
    checkpoints = Checkpoints(folder, keep=2)
    try:
        return checkpoints.restore_newest(_state(0), warn=warnings.append), warnings
    finally:
        checkpoints.close()


def _is_saved(restored: Restored) -> bool:
    step = int(restored.state.step)
    return digest(restored.state) == digest(_state(step)) and restored.meta == {"epoch": step}


if __name__ == "__main__":
    main(sys.argv[1:])
