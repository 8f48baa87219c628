"""Errors that end a command with one message and one exit code."""

from collections.abc import Iterable


class CervsegError(Exception):
    """Base of all errors that end a command with a message instead of a traceback.

    The message names the subject (file, key or argument), the rule, what was received and what to do.
    """

    exit_code = 1


class FindingsError(CervsegError):
    """The work ran to its end and found something wrong, such as files that could not be read."""

    exit_code = 1


class ConfigError(CervsegError):
    """A config key, an argument or a path is wrong."""

    exit_code = 2


class DataError(CervsegError):
    """The data are unreadable, unpaired or mismatched."""

    exit_code = 3


class CheckpointError(CervsegError):
    """A checkpoint or a run folder cannot be used."""

    exit_code = 4


class DivergedError(CervsegError):
    """Training produced a loss that is not finite; the last good state is kept."""

    exit_code = 5


class InterruptedRunError(CervsegError):
    """Training was asked to stop and has saved its state; the same command continues it."""

    exit_code = 75


def first_few(items: Iterable[str], separator: str = ", ", limit: int = 10) -> str:
    """Joins the first items, and says how many more there are."""
    listed = list(items)
    rest = len(listed) - limit
    return separator.join(listed[:limit] + ([f"and {rest} more"] if rest > 0 else []))


def first_line(error: BaseException) -> str:
    r"""Returns the first line of an error's text, or its type where it has none.

    Example:
      >>> first_line(ValueError("a\nb")), first_line(MemoryError())
      ('a', 'MemoryError')
    """
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__).strip()
