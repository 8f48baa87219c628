"""Thread pools for work on many files."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from cervseg_jax.errors import DataError
from cervseg_jax.schema import DataConfig
from cervseg_jax.storage.cached import fetch_ahead

MAX_THREADS = 16
"""More threads would mostly wait for the GIL."""

Entry = TypeVar("Entry")
Outcome = TypeVar("Outcome")


def default_threads() -> int:
    """Returns one thread per CPU core that the process may use, at most `MAX_THREADS`."""
    # In a Slurm job or a container the affinity is limited to its share of the machine; macOS has no affinity.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MAX_THREADS)


def map_files(
    work: Callable[[Entry], Outcome],
    entries: Iterable[Entry],
    *,
    on_progress: Callable[[], object] = lambda: None,
    problems: list[str] | None = None,
    threads: int | None = None,
) -> list[Outcome]:
    """Calls `work` for every entry on a pool of threads.

    Args:
      work: the function; it may raise `DataError` for a bad file.
      entries: its arguments, one per call; files in buckets that they name are fetched ahead.
      on_progress: called after each entry, from any thread.
      problems: receives the messages of `DataError`s in the order of the entries, which are then missing from the
        result; None lets the first error end the call.
      threads: size of the pool; default: `default_threads()`.

    Returns:
      Results in the order of the entries.

    Raises:
      DataError: if `work` raises one and `problems` is None.
    """

    def guarded(entry: Entry) -> tuple[bool, Outcome | str]:
        try:
            return True, work(entry)
        except DataError as error:
            if problems is None:
                raise
            return False, str(error)
        finally:
            on_progress()

    pool = ThreadPoolExecutor(threads or default_threads())
    try:
        outcomes = list(pool.map(guarded, fetch_ahead(entries)))
    finally:
        pool.shutdown(cancel_futures=True)  # an error or Ctrl-C does not wait for the entries that have not begun
    if problems is not None:
        problems.extend(str(value) for is_good, value in outcomes if not is_good)
    return [value for is_good, value in outcomes if is_good]  # pyright: ignore[reportReturnType]


def map_ahead(
    pool: ThreadPoolExecutor, work: Callable[[Entry], Outcome], entries: Iterable[Entry], *, ahead: int
) -> Iterator[Outcome]:
    """Yields the results of `work` in the order of the entries, while a pool works on the next ones.

    Args:
      pool: where `work` runs.
      work: the function; what it raises is raised in its turn.
      entries: its arguments, taken one by one in the caller's thread.
      ahead: how many entries are taken, at most, beyond the one whose result is yielded.
    """
    pending: deque[Future[Outcome]] = deque()
    for entry in entries:
        pending.append(pool.submit(work, entry))
        if len(pending) > ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def num_threads(data: DataConfig) -> int:
    """Returns `data.threads`, or the default."""
    return default_threads() if data.threads is None else data.threads
