"""Maps exceptions to one message and an exit code."""

import os
import sys
import traceback
from pathlib import Path
from typing import NamedTuple

import typer

from cervseg_jax.errors import CervsegError, ConfigError
from cervseg_jax.extras import reinstall_command

INTERRUPTED_BY_USER = 130


class Failure(NamedTuple):
    """What the user is told, and the exit code."""

    message: str
    exit_code: int


def explain(error: BaseException) -> Failure | None:
    """Explains an exception that users can cause.

    Args:
      error: what ended the command.

    Returns:
      The message and exit code, or None for an exception that is a defect of the program.
    """
    if isinstance(error, CervsegError):
        return Failure(str(error), error.exit_code)
    if isinstance(error, KeyboardInterrupt):
        return Failure("interrupted before there was anything to save", INTERRUPTED_BY_USER)
    if isinstance(error, ImportError):
        return Failure(_import_advice(error), ConfigError.exit_code)
    if isinstance(error, OSError):
        return Failure(f"{error.filename or 'input/output'}: {error.strerror or error}", ConfigError.exit_code)
    if isinstance(error, MemoryError) or _is_thread_shortage(error):
        return Failure(
            "the system has too little memory, or a limit is too low (ulimit -v, ulimit -u); `cervseg-jax doctor` "
            "shows the free memory",
            ConfigError.exit_code,
        )
    if isinstance(error, AttributeError | TypeError | ValueError) and _is_raised_by_keras_settings(error):
        folder = os.environ.get("KERAS_HOME") or "~/.keras"
        return Failure(f"{folder}/keras.json: Keras refuses it: {error}; repair or remove it", ConfigError.exit_code)
    if isinstance(error, RuntimeError | AssertionError):
        message = missing_platform()
        if message is not None:
            return Failure(message, ConfigError.exit_code)
    return None


def explain_usage(error: typer.BadParameter) -> str:
    """Returns a message about wrong arguments, with the command whose help explains them.

    Args:
      error: any usage error of Typer; `BadParameter` is the one that Typer exports.
    """
    command = "cervseg-jax" if error.ctx is None else error.ctx.command_path
    message = error.format_message().strip().rstrip(".")
    return f"{message[:1].lower()}{message[1:]}; `{command} --help` lists the arguments"


def missing_platform() -> str | None:
    """Returns a message if JAX_PLATFORMS names a platform that JAX cannot start, else None."""
    requested = os.environ.get("JAX_PLATFORMS", "")
    if requested in ("", "cpu"):
        return None
    import jax

    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        lines = str(error).strip().splitlines()
        reason = f" ({lines[0].partition(' (set JAX_PLATFORMS')[0]})" if lines else ""
        return (
            f"JAX_PLATFORMS={requested}: JAX finds no such device{reason}; unset the variable or set "
            "JAX_PLATFORMS=cpu; `cervseg-jax doctor` checks the devices"
        )
    return None


def _is_raised_by_keras_settings(error: BaseException) -> bool:
    """Whether Keras raised an error while it read keras.json, which other projects of the user write."""
    return any(
        Path(frame.filename).parts[-3:] == ("src", "backend", "config.py") and frame.name == "<module>"
        for frame in traceback.extract_tb(error.__traceback__)
    )


def _is_thread_shortage(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and "can't start new thread" in str(error)


def _import_advice(error: ImportError) -> str:
    """Explains the import errors of fresh or small machines."""
    text = str(error)
    if ".so" in text and any(name in text for name in ("libGL", "libX", "libxcb", "libglib", "libgthread")):
        return (
            f"OpenCV cannot start: {text}\nInstall the missing system library "
            "(Debian, Ubuntu: sudo apt-get install -y libgl1 libglib2.0-0 libxcb1), "
            "or use the build of OpenCV without windows: "
            "pip uninstall -y opencv-python && pip install opencv-python-headless"
        )
    unmapped = next((line for line in text.splitlines() if "failed to map" in line), None)
    if unmapped is not None:
        return f"too little memory to load a library: {unmapped.strip()}; raise the limit (ulimit -v)"
    return f"a package is missing or broken: {text}; install again with: {reinstall_command()}"


def is_distributed() -> bool:
    """Whether this process has joined others."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()
