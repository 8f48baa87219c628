"""The run folder: whose it is, what is in it, and that nobody loses anything in it."""

import fcntl
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from cervseg_jax.choices import BitDepth
from cervseg_jax.config import config_differences, dump_config, load_config
from cervseg_jax.data.checks import PairStats
from cervseg_jax.errors import CervsegError, CheckpointError, ConfigError
from cervseg_jax.files import csv_text, make_folder, read_text, write_json, write_text
from cervseg_jax.runs.bucket import exists, is_address
from cervseg_jax.runs.trackers import TRACKERS, tracked_values
from cervseg_jax.schema import Config

REPORTED_PACKAGES = (
    "cervseg-jax",
    "jax",
    "jaxlib",
    "keras",
    "optax",
    "numpy",
    "opencv-python",
    "grain",
    "orbax-checkpoint",
)

RESUMABLE_KEYS = frozenset(
    {
        "data.threads",
        "data.prefetch_batches",
        "data.cache_gib",
        "train.keep_checkpoints",
        "train.keep_every_epochs",
        "train.save_minutes",
        "train.log_steps",
        "train.trackers",
        "runtime.require",
        "runtime.profile_steps",
    }
)
"""Keys that say how the work is done and not what comes out: a run may go on with other values."""


def choose_run_folder(config_path: Path, run_dir: Path | None, *, fresh: bool) -> Path:
    """Returns the folder of a run.

    Args:
      config_path: `runs/<its stem>` is the default.
      run_dir: the user's own choice.
      fresh: take the first numbered sibling that does not exist yet.

    Returns:
      An absolute path, or an address in a bucket.

    Raises:
      ConfigError: if a bucket cannot be read.
    """
    wanted = run_dir or Path("runs") / config_path.stem
    if not is_address(wanted):
        wanted = wanted.absolute()
    if not fresh or not exists(wanted):
        return wanted
    number = 2
    while exists(sibling := wanted.with_name(f"{wanted.name}-{number}")):
        number += 1
    return sibling


def seed_folder(folder: Path, seed: int) -> Path:
    """Returns the run folder of one seed of a recipe."""
    return folder / f"seed_{seed}"


def member_runs(folder: Path) -> list[Path]:
    """Returns the runs of a recipe that was trained with several seeds; the folder itself where it is a run."""
    found = [path.parent for path in folder.glob("seed_*/config.yaml") if path.parent.name[5:].isdecimal()]
    is_recipe = found and not (folder / "config.yaml").exists()
    return sorted(found, key=lambda path: int(path.name[5:])) if is_recipe else [folder]


def open_run_folder(folder: Path, config: Config, *, allow_changes: bool) -> None:
    """Makes a run folder, or checks that an existing one belongs to this config.

    Args:
      folder: absolute path.
      config: the recipe; written to `config.yaml`.
      allow_changes: continue a run under a changed config; `RESUMABLE_KEYS` may differ in any case.

    Raises:
      ConfigError: if the folder holds something else, or a run of another config.
    """
    path = folder / "config.yaml"
    if path.exists():
        try:
            depth = config.data.bit_depth
            # Runs of versions without the setting divided the full range of 16 bits.
            changes = _differences_that_count(_load_with_depth(path, depth if depth in ("auto", 16) else 16), config)
        except ConfigError as error:
            raise CheckpointError(f"{folder}: its config.yaml cannot be used: {error}") from None
        if changes and not allow_changes:
            raise ConfigError(
                f"{folder}: holds a run of another config:\n  "
                + "\n  ".join(changes)
                + "\nUse --fresh for a new run beside it, or --allow-changes to go on with it"
            )
    elif folder.exists() and any(item.name != "run.lock" for item in folder.iterdir()):
        raise ConfigError(f"{folder}: is not empty and holds no run (no config.yaml); choose another --run-dir")
    make_folder(folder)
    try:
        write_text(path, dump_config(config))
        write_json(folder / "env.json", _environment())
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written: {error.strerror}") from None


def _differences_that_count(old: Config, new: Config) -> list[str]:
    return [change for change in config_differences(old, new) if change.partition(":")[0] not in RESUMABLE_KEYS]


def record_data(folder: Path, facts: Mapping[str, Sequence[PairStats]], *, allow_changes: bool) -> None:
    """Writes `data.csv`: every file of the run with its split, source and hash.

    Args:
      folder: the run folder.
      facts: what was read, by split.
      allow_changes: accept other files than an earlier call in this folder saw.

    Raises:
      ConfigError: if the files have changed, or the folder cannot be written.
    """
    path = folder / "data.csv"
    text = data_csv(facts)
    try:
        if path.exists() and not allow_changes:
            changed = sorted(
                set(path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()) ^ set(text.splitlines())
            )
            if changed:
                raise ConfigError(
                    f"{folder}: the data have changed since this run began "
                    f"({len(changed)} lines of data.csv, the first: {changed[0]})\n"
                    "Use --fresh for a new run beside it, or --allow-changes to go on with it"
                )
        write_text(path, text)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written: {error.strerror}") from None


def data_csv(facts: Mapping[str, Sequence[PairStats]]) -> str:
    """Returns the table of all files of a run, by split."""
    rows = [
        [split, fact.pair.stem, fact.pair.group, fact.pair.image_path, fact.height, fact.width, fact.image_sha256]
        for split, split_facts in facts.items()
        for fact in split_facts
    ]
    return csv_text(["split", "stem", "group", "image_path", "height", "width", "image_sha256"], rows)


def load_run_config(folder: Path, overrides: Sequence[str] = ()) -> Config:
    """Reads the config of an existing run.

    Args:
      folder: the run folder.
      overrides: as for `load_config`.

    Returns:
      The resolved config.

    Raises:
      ConfigError: if there is no such folder, or an override is wrong.
      CheckpointError: if it is no run folder, or its config is unusable.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such run folder")
    if not (folder / "config.yaml").is_file():
        seeds = [run.name for run in member_runs(folder) if run != folder]
        hint = f"; it holds the runs of several seeds: choose one of {', '.join(seeds)}" if seeds else ""
        raise CheckpointError(f"{folder}: is no run folder (no config.yaml){hint}")
    try:
        config = _load_with_depth(folder / "config.yaml", 16)
    except CervsegError as error:
        raise CheckpointError(f"{folder}: its config.yaml cannot be used: {error}") from None
    return _load_with_depth(folder / "config.yaml", 16, overrides) if overrides else config


def _load_with_depth(path: Path, depth: BitDepth, overrides: Sequence[str] = ()) -> Config:
    """Loads a run's config; where it is of a version without `data.bit_depth`, with the depth that is given."""
    config = load_config(path, overrides)
    is_stated = "bit_depth" in read_text(path) or any("bit_depth" in text for text in overrides)
    return config if is_stated else load_config(path, [f"data.bit_depth={depth}", *overrides])


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps a second training out of a run folder; the lock ends with the process, however it ends.

    Raises:
      ConfigError: if another process holds it.
    """
    make_folder(folder)
    try:
        file = (folder / "run.lock").open("w")
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written: {error.strerror}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"{folder}: another process is training in this folder") from None
        yield


class EventLog:
    """Appends events to `log.jsonl`, one JSON object per line; trackers get the figures of steps and epochs."""

    def __init__(self, folder: Path, *, trackers: Sequence[str] = (), is_open: bool = True) -> None:
        """Opens `folder/log.jsonl` for appending; where it is not to be open, events go nowhere.

        Args:
          folder: the run folder.
          trackers: names of `TRACKERS`.
          is_open: whether this process writes.

        Raises:
          ConfigError: if a tracker's package is not installed.
        """
        self._path = folder / "log.jsonl" if is_open else None
        self._trackers = [TRACKERS[name](folder) for name in trackers]

    def write(self, event: str, **facts: Any) -> None:
        """Appends an event with the time and its facts."""
        if self._path is None:
            return
        line = json.dumps({"time": round(time.time(), 3), "event": event, **facts}, allow_nan=False, default=str)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        values = tracked_values(event, facts) if event in ("steps", "epoch") else {}
        for tracker in self._trackers:
            if values:
                tracker.track(facts["step"], values)

    def close(self) -> None:
        """Waits until trackers have written everything."""
        for tracker in self._trackers:
            tracker.close()


def _environment() -> dict[str, Any]:
    versions = {}
    for name in REPORTED_PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "command": sys.argv,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "devices": [f"{device.platform} {device.device_kind} #{device.id}" for device in jax.devices()],
        "versions": versions,
        "git_commit": _git_commit(),
    }


def _git_commit() -> str | None:
    """Returns the commit of the source tree that this package runs from, if it is one."""
    try:
        result = subprocess.run(  # noqa: S603
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"],  # noqa: S607
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None
