"""The command line: parses arguments, runs one command, and maps errors to exit codes."""

import io
import logging
import os
import sys
from typing import Any

import typer

from cervseg_jax.cli.environment import set_compilation_cache
from cervseg_jax.cli.failures import Failure, explain, explain_usage, is_distributed
from cervseg_jax.errors import InterruptedRunError

_UsageError: Any = typer.BadParameter.__bases__[0]
"""Base class of Typer's errors about arguments, which Typer does not export."""


def main() -> None:
    """Entry point of `cervseg-jax`."""
    is_debug = "--debug" in sys.argv
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be UTF-8
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    set_compilation_cache()
    logger, notices = logging.getLogger("cervseg_jax"), _NoticeHandler(logging.WARNING)
    logger.addHandler(notices)
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it warns of caches in a home folder that is read-only
    logger.propagate = False  # libraries install handlers of the root logger, which would print notices again
    try:
        exit_code = _run_command()
    except BrokenPipeError:
        sys.stderr.close()  # whoever read our output is gone
        raise SystemExit(1) from None
    except BaseException as error:
        failure = None if is_debug else explain(error)
        if failure is None:
            raise
        exit_code = _exit_code(failure)
    finally:
        logger.propagate = True
        logger.removeHandler(notices)
    if exit_code:
        raise SystemExit(exit_code)


def _run_command() -> int:
    """Runs the command that `sys.argv` names; returns the exit code."""
    from cervseg_jax.cli.app import app

    try:
        result = app(prog_name="cervseg-jax", standalone_mode=False)
    except typer.Abort:
        raise KeyboardInterrupt from None
    except _UsageError as error:
        if type(error).__name__.startswith("NoArgsIsHelp"):  # no command: the message is the help text
            print(error.format_message(), file=sys.stderr)
            return 2
        print(f"error: {explain_usage(error)}", file=sys.stderr)
        return 2
    return result if isinstance(result, int) else 0


class _NoticeHandler(logging.Handler):
    """Shows warnings of the package on stderr, each of them once."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self._shown: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message not in self._shown:
            self._shown.add(message)
            print(f"notice: {message}", file=sys.stderr, flush=True)


def _exit_code(failure: Failure) -> int:
    """Prints the message; returns the exit code, unless other processes must notice that this one ends."""
    print(f"error: {failure.message}", file=sys.stderr, flush=True)
    if failure.exit_code != InterruptedRunError.exit_code and is_distributed():
        # An orderly exit would wait for the other processes, which wait for this one. They notice that it is gone.
        sys.stdout.flush()
        os._exit(failure.exit_code)
    return failure.exit_code
