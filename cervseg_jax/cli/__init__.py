"""The command line: parses, calls one function, maps errors to exit codes."""

import hashlib
import io
import itertools
import logging
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cervseg_jax.errors import CervsegError, InterruptedRunError


def main() -> None:
    """Entry point of `cervseg-jax`."""
    debug = "--debug" in sys.argv
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for file names that are no UTF-8
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    _keep_compiled_programs()
    try:
        with _shown_notices():
            from cervseg_jax.cli.app import app

            app(prog_name="cervseg-jax")
    except CervsegError as error:
        if debug:
            raise
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        if debug:
            raise
        _fail("stopped before there was anything to save", 130)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has gone; there is nobody to tell
        raise SystemExit(1) from None
    except ImportError as error:
        if debug:
            raise
        _fail(_import_advice(error), 2)
    except OSError as error:
        if debug:
            raise
        _fail(f"{error.filename or 'a file'}: {error.strerror or error}", 2)


@contextmanager
def _shown_notices() -> Iterator[None]:
    """Prints the package's log warnings, such as renamed config keys, to stderr; each once."""
    shown: set[str] = set()
    handler = logging.Handler(logging.WARNING)

    def emit(record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message not in shown:
            shown.add(message)
            print(f"warning: {message}", file=sys.stderr, flush=True)

    handler.emit = emit
    logger = logging.getLogger("cervseg_jax")
    logger.addHandler(handler)
    logger.propagate = False  # libraries may have installed a handler of the root logger, which would print it again
    try:
        yield
    finally:
        logger.propagate = True
        logger.removeHandler(handler)


def _keep_compiled_programs() -> None:
    """Names a folder for compiled programs to JAX, which reads the variable when it is imported.

    Each kind of processor has its own: homes are shared by hosts.
    """
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return  # a user without a home
    try:
        with open("/proc/cpuinfo") as file:
            first_core = itertools.takewhile(str.strip, file)
            kind = "".join(line for line in first_core if line.startswith(("model name", "flags", "Features")))
    except OSError:
        kind = platform.processor()
    folder = base / "cervseg-jax" / f"xla-{hashlib.sha256(kind.encode()).hexdigest()[:12]}"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder))


def _fail(message: str, exit_code: int) -> None:
    print(f"error: {message}", file=sys.stderr, flush=True)
    jax = sys.modules.get("jax")
    if exit_code != InterruptedRunError.exit_code and jax is not None and jax.distributed.is_initialized():
        # An orderly end would wait for the other processes, which wait for this one; they notice that it is gone.
        sys.stdout.flush()
        os._exit(exit_code)
    raise SystemExit(exit_code)


def _import_advice(error: ImportError) -> str:
    """Explains the import errors that users of fresh machines meet."""
    text = str(error)
    if ".so" in text and any(name in text for name in ("libGL", "libX", "libxcb", "libglib", "libgthread")):
        return (
            f"OpenCV cannot start: {text}\nInstall the missing system library "
            "(Debian, Ubuntu: sudo apt-get install -y libgl1 libglib2.0-0 libxcb1), "
            "or use OpenCV's build without windows: "
            "pip uninstall -y opencv-python && pip install opencv-python-headless"
        )
    return f"a package is missing or broken: {text}; install again with: pip install --force-reinstall cervseg-jax"
