"""The run folder: its name, config, environment and data files, and the checks before a run continues in it."""

import fcntl
import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from cervseg_jax.choices import BitDepth
from cervseg_jax.config import config_differences, dump_config, load_config
from cervseg_jax.data.checks import PairStats
from cervseg_jax.errors import CervsegError, CheckpointError, ConfigError
from cervseg_jax.files import make_folder, read_text, write_json, write_text
from cervseg_jax.schema import Config
from cervseg_jax.storage.address import Address, as_path
from cervseg_jax.tables import csv_text

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
"""Keys that do not affect the result: a run may continue with other values of them."""


def choose_run_folder(config_path: Path, run_dir: Path | None, *, fresh: bool) -> Path:
    """Returns the folder of a run.

    Args:
      config_path: `runs/<its stem>` is the default.
      run_dir: folder that the user has chosen, or None.
      fresh: take the first numbered sibling that does not exist.

    Returns:
      An absolute path, or an address in a bucket.

    Raises:
      ConfigError: if a bucket cannot be read, or no training can write there.
    """
    folder = as_path(run_dir or Path("runs") / config_path.stem).absolute()
    if isinstance(folder, Address) and folder.scheme != "gs":
        raise ConfigError(f"--run-dir: {folder}: a training writes its run to gs:// or to a disk")
    if not fresh or not folder.exists():
        return folder
    number = 2
    while (sibling := folder.with_name(f"{folder.name}-{number}")).exists():
        number += 1
    return sibling


def seed_name(seed: int) -> str:
    """Returns the name of the run folder of one seed, inside the folder of the recipe."""
    return f"seed_{seed}"


def member_runs(folder: Path) -> list[Path]:
    """Returns the runs of a recipe that was trained with several seeds, or the folder itself if it is a run."""
    members = [path.parent for path in folder.glob("seed_*/config.yaml") if path.parent.name[5:].isdecimal()]
    is_recipe = members and not (folder / "config.yaml").exists()
    return sorted(members, key=lambda path: int(path.name[5:])) if is_recipe else [folder]


def open_run_folder(folder: Path, config: Config, *, allow_changes: bool) -> None:
    """Creates a run folder, or checks that an existing one belongs to this config.

    Args:
      folder: absolute path.
      config: the recipe; written to `config.yaml`.
      allow_changes: continue a run with a changed config; `RESUMABLE_KEYS` may always differ.

    Raises:
      ConfigError: if the folder holds other files, or a run of another config.
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
                + "\nUse --fresh to start a new run beside it, or --allow-changes to continue it"
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
    """Writes `data.csv`, which lists every data file of the run with its split, source and hash.

    Args:
      folder: the run folder.
      facts: metadata of the files by split.
      allow_changes: accept files that differ from those of an earlier call in this folder.

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
                    "Use --fresh to start a new run beside it, or --allow-changes to continue it"
                )
        write_text(path, text)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written: {error.strerror}") from None


def data_csv(facts: Mapping[str, Sequence[PairStats]]) -> str:
    """Returns the table of all data files of a run as CSV."""
    rows = [
        [split, fact.pair.stem, fact.pair.group, fact.pair.image_path, fact.height, fact.width, fact.image_sha256]
        for split, split_facts in facts.items()
        for fact in split_facts
    ]
    return csv_text(["split", "stem", "group", "image_path", "height", "width", "image_sha256"], rows)


def next_command(folder: str, splits: Collection[str]) -> str:
    """Returns the command that shows what trained weights do on images that they were not trained on.

    Args:
      folder: the run folder.
      splits: of its images; empty if they are not known.
    """
    if "test" in splits or not splits:
        return f"eval {folder}"
    return f"eval {folder} --split valid" if "valid" in splits else f"infer {folder} --images FOLDER --out found"


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
    """Locks a run folder against a second training; the lock is released when the process ends in any way.

    Raises:
      ConfigError: if another process holds the lock.
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
    """Returns the commit of the source tree that contains this package, or None outside a Git checkout."""
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
