"""Messages and progress for the user: bars on a terminal, plain lines elsewhere."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

PLAIN_INTERVAL_SECONDS = 5.0
"""Time between two progress lines if stdout is not a terminal."""

FIRST_BATCH_SECONDS = 0.2
"""Units finished within this time of the first one are one batch, which also paid for compiling."""

Advance = Callable[..., None]
"""`advance(note="")`: one more unit is done."""


def short_path(path: Path) -> str:
    """Returns a path relative to the current folder if it is inside, and unchanged otherwise."""
    try:
        return str(path.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def format_duration(seconds: float) -> str:
    """Formats a duration in its two largest units.

    Example:
      >>> [format_duration(seconds) for seconds in (7.4, 95, 7325, 200000)]
      ['7 s', '1 min 35 s', '2 h 2 min', '2 d 7 h']
    """
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


class RateMeter:
    """Measures the rate of finished units and estimates the time left.

    The rate is measured from the first finished units on: the time before them goes into compiling and filling queues,
    and would make every estimate too long.
    """

    def __init__(self, total: int, *, done: int = 0) -> None:
        """Starts the clock.

        Args:
          total: number of units.
          done: units finished earlier; they do not count for the rate.
        """
        self.total = total
        self.done = done
        self._start = self._rate_start = time.monotonic()
        self._count = self._count_at_rate_start = 0

    def advance(self) -> None:
        """Counts one more finished unit."""
        now = time.monotonic()
        self.done += 1
        self._count += 1
        if self._count == 1:
            self._rate_start = now
        if now - self._rate_start < FIRST_BATCH_SECONDS:
            self._count_at_rate_start = self._count

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start

    @property
    def rate(self) -> float | None:
        """Units per second, or None while only the first units are finished."""
        count = self._count - self._count_at_rate_start
        return count / (time.monotonic() - self._rate_start) if count else None

    @property
    def seconds_left(self) -> float | None:
        """Estimated seconds to the end, or None if there is no rate yet."""
        rate = self.rate
        return None if rate is None else (self.total - self.done) / rate

    def describe(self) -> str:
        """Returns rate, elapsed time and time left, as far as they are known."""
        elapsed = f"{format_duration(self.elapsed)} elapsed"
        rate, left = self.rate, self.seconds_left
        if rate is None or left is None:
            return elapsed
        shown = f"{rate:.2f}/s" if rate >= 0.1 else f"{1 / rate:.0f} s each"
        return f"{shown}, {elapsed}, {format_duration(left)} left"


class Reporter:
    """Prints messages and progress."""

    def __init__(self, *, quiet: bool = False, is_silent: bool = False) -> None:
        """Creates a reporter.

        Args:
          quiet: print warnings only; they go to stderr.
          is_silent: print nothing, not even warnings; for all but one of several processes with the same messages.
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
        """Shows the progress of a loop.

        Args:
          title: what the loop does.
          total: number of units.
          done: units finished by an earlier call.

        Yields:
          A function to call after each unit, with an optional note such as the current loss.
        """
        meter = RateMeter(total, done=done)
        if self.quiet:
            yield _silent
        elif self._console.is_terminal:
            with self._bar() as bar:
                task = bar.add_task(title, total=total, completed=done, times="", note="")

                def advance(note: str = "") -> None:
                    meter.advance()
                    bar.update(task, advance=1, times=meter.describe(), note=note)

                yield advance
        else:
            yield _plain_lines(title, meter, self.info)

    def _bar(self) -> Progress:
        return Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[times]}", markup=False),
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
    """Shows nothing."""


def _plain_lines(title: str, meter: RateMeter, show: Callable[[str], None]) -> Advance:
    last = time.monotonic()

    def advance(note: str = "") -> None:
        nonlocal last
        meter.advance()
        now = time.monotonic()
        if now - last >= PLAIN_INTERVAL_SECONDS:
            last = now
            show(f"{title}: {meter.done}/{meter.total}  {meter.describe()}  {note}".rstrip())

    return advance
