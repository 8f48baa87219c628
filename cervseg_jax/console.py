"""Messages and progress on the console."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

PLAIN_INTERVAL_SECONDS = 5.0
"""Time between two lines of progress if stdout is not a terminal."""

Advance = Callable[..., None]
"""`advance(note="")`: marks one more unit as done."""


def short_path(path: Path) -> str:
    """Returns a path relative to the current folder if it is inside, and unchanged otherwise."""
    try:
        return str(path.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


class Reporter:
    """Prints messages and progress: bars on a terminal, plain lines elsewhere."""

    def __init__(self, *, quiet: bool = False, is_silent: bool = False) -> None:
        """Creates a reporter.

        Args:
          quiet: print warnings only.
          is_silent: print nothing; for all processes but the primary one.
        """
        self.quiet = quiet or is_silent
        self._is_silent = is_silent
        self._console = Console(highlight=False, soft_wrap=True)

    def info(self, message: str) -> None:
        """Prints a line."""
        if not self.quiet:
            self._console.print(message, markup=False)

    def warn(self, message: str) -> None:
        """Prints a warning to stderr."""
        if not self._is_silent:
            print(f"warning: {message}", file=sys.stderr, flush=True)

    @contextmanager
    def progress(self, title: str, total: int, *, done: int = 0) -> Iterator[Advance]:
        """Shows the progress of a loop, with its rate and the remaining time.

        Args:
          title: label of the bar.
          total: number of units.
          done: units that were done before.

        Yields:
          A function to call after each unit, with an optional note such as the current loss.
        """
        if self.quiet:
            yield _silent
        elif self._console.is_terminal:
            with self._bar() as bar:
                task = bar.add_task(title, total=total, completed=done, note="", rate="")
                start = time.monotonic()
                count = 0

                def advance(note: str = "") -> None:
                    nonlocal count
                    count += 1
                    rate = count / max(time.monotonic() - start, 1e-9)
                    bar.update(task, advance=1, note=note, rate=f"{rate:.2f}/s")

                yield advance
        else:
            yield _plain_lines(title, total, done, self.info)

    def _bar(self) -> Progress:
        return Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}", markup=False),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=self._console,
            transient=True,
        )


class LogReporter(Reporter):
    """Sends messages to the logger "cervseg_jax" and shows no progress; for use from Python."""

    def __init__(self) -> None:
        """Makes a reporter."""
        super().__init__(quiet=True)
        self._logger = logging.getLogger("cervseg_jax")

    def info(self, message: str) -> None:
        """Logs a message."""
        self._logger.info(message)

    def warn(self, message: str) -> None:
        """Logs a warning."""
        self._logger.warning(message)


def _silent(note: str = "") -> None:
    """Ignores progress."""


def _plain_lines(title: str, total: int, done: int, show: Callable[[str], None]) -> Advance:
    start = last = time.monotonic()
    count = 0

    def advance(note: str = "") -> None:
        nonlocal count, last
        count += 1
        now = time.monotonic()
        if now - last >= PLAIN_INTERVAL_SECONDS:
            last = now
            rate = count / (now - start)
            left = (total - done - count) / rate
            show(f"{title}: {done + count}/{total}  {rate:.2f}/s  {left:.0f} s left  {note}".rstrip())

    return advance
