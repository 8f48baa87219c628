"""Prepares the process for a command and checks the limits that the operating system sets.

Native libraries abort, hang or print pages of their own messages when memory or threads run out while they load, so
these limits are checked beforehand.
"""

import hashlib
import itertools
import os
import platform
import threading
from pathlib import Path

from cervseg_jax.errors import ConfigError

MIN_ADDRESS_SPACE = 9 * 2**27
"""NumPy and OpenCV crash while they are loaded, or threads start, in less."""
MIN_ADDRESS_SPACE_JAX = 9 * 2**28
"""XLA aborts while it starts in less; with many cores it needs more."""
MIN_OPEN_FILES = 64
MIN_THREADS = 8
"""XLA and OpenBLAS abort if they cannot start their threads."""


def check_limits(*, needs_jax: bool) -> None:
    """Checks the limits on address space, open files and threads.

    Args:
      needs_jax: whether JAX will be loaded, which needs more than OpenCV and NumPy.

    Raises:
      ConfigError: if a limit is too low.
    """
    try:
        import resource
    except ImportError:
        return  # not a POSIX system
    address_space, _ = resource.getrlimit(resource.RLIMIT_AS)
    is_limited = address_space != resource.RLIM_INFINITY
    needed = MIN_ADDRESS_SPACE_JAX if needs_jax else MIN_ADDRESS_SPACE
    if is_limited and address_space < needed:
        raise ConfigError(
            f"the address space is limited to {address_space / 2**30:.2g} GiB (ulimit -v), which is too little to load "
            f"{'JAX' if needs_jax else 'OpenCV'}; allow at least {needed / 2**30:.3g} GiB"
        )
    open_files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if open_files != resource.RLIM_INFINITY and open_files < MIN_OPEN_FILES:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(MIN_OPEN_FILES, most), most))
        except (ValueError, OSError):
            most = open_files
        if most != resource.RLIM_INFINITY and most < MIN_OPEN_FILES:
            raise ConfigError(
                f"the number of open files is limited to {most} (ulimit -n); allow at least {MIN_OPEN_FILES}"
            )
    # Each thread reserves address space for its stack and heap, which a tight limit must leave to the libraries.
    has_room = not is_limited or address_space > 2 * MIN_ADDRESS_SPACE_JAX
    if has_room and not _can_start_threads(MIN_THREADS):
        raise ConfigError(
            f"the system refuses to start {MIN_THREADS} threads: the number of processes is limited (ulimit -u, or "
            "the pids limit of a container), or memory is short; raise the limit"
        )


def _can_start_threads(count: int) -> bool:
    """Whether `count` threads can exist at once."""
    finish = threading.Event()
    threads: list[threading.Thread] = []
    try:
        for _ in range(count):
            thread = threading.Thread(target=finish.wait, daemon=True)
            thread.start()
            threads.append(thread)
    except (RuntimeError, MemoryError):
        return False
    finally:
        finish.set()
        for thread in threads:
            thread.join()
    return True


def set_compilation_cache() -> None:
    """Names a folder for compiled programs, through a variable that JAX reads when it is imported.

    Home folders may be shared by hosts, so each kind of processor has its own folder. There is none where it cannot be
    written, of which JAX would warn at every program.
    """
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return  # the user has no home folder
    try:
        with open("/proc/cpuinfo") as file:
            first_core = itertools.takewhile(str.strip, file)
            kind = "".join(line for line in first_core if line.startswith(("model name", "flags", "Features")))
    except OSError:
        kind = platform.processor()
    folder = base.absolute() / "cervseg-jax" / f"xla-{hashlib.sha256(kind.encode()).hexdigest()[:12]}"
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if not os.access(nearest, os.W_OK | os.X_OK):
        return
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder))
