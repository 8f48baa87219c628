"""`cervseg-jax doctor`."""

import os
import platform
import shutil
from pathlib import Path
from typing import NamedTuple

from cervseg_jax import __version__
from cervseg_jax.errors import FindingsError
from cervseg_jax.extras import install_command, reinstall_command

EXAMPLE = "cervseg-jax doctor"

MIN_FREE_MEMORY = 2 * 2**30
MIN_FREE_DISK = 2 * 2**30
TPU_LOCK_FILE = Path("/tmp/libtpu_lockfile")  # noqa: S108 (libtpu's own choice)
PACKAGES = ("jax", "jaxlib", "keras", "optax", "grain", "orbax-checkpoint", "numpy", "opencv-python", "typer")


class Check(NamedTuple):
    """One line of the report."""

    subject: str
    result: str
    fix: str = ""
    """What to do; empty if there is no problem."""


def doctor() -> None:
    """Check this machine and suggest fixes.

    Checks devices, package versions, OpenCV, memory and disk. Exits with 1 on a problem.
    """
    from rich.console import Console
    from rich.table import Table

    checks = [
        Check(
            "cervseg-jax",
            f"{__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}",
        ),
        *check_packages(),
        check_opencv(),
        *check_devices(),
        check_memory(),
        check_disk(Path.cwd()),
    ]
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for check in checks:
        mark = "ok" if not check.fix else "!!"
        table.add_row(mark, check.subject, check.result if not check.fix else f"{check.result}\nfix: {check.fix}")
    Console(soft_wrap=True, highlight=False).print(table)
    findings = [check.subject for check in checks if check.fix]
    if findings:
        raise FindingsError(f"problems found: {', '.join(findings)}")


def check_packages() -> list[Check]:
    """Checks that the required packages are installed, and that there is only one build of OpenCV."""
    checks = []
    for name in PACKAGES:
        version = _version(name) or (_version("opencv-python-headless") if name == "opencv-python" else None)
        fix = "" if version else f"install again: {reinstall_command()}"
        checks.append(Check(name, version or "not installed", fix))
    if _version("opencv-python") and _version("opencv-python-headless"):
        fix = "keep one: pip uninstall -y opencv-python opencv-python-headless && pip install opencv-python-headless"
        checks.append(Check("OpenCV builds", "opencv-python and opencv-python-headless overwrite each other", fix))
    return checks


def check_opencv() -> Check:
    """Checks that OpenCV starts and reads a PNG."""
    try:
        import cv2
        import numpy as np

        _, packed = cv2.imencode(".png", np.full((2, 2), 7, np.uint8))
        works = bool((np.asarray(cv2.imdecode(packed, cv2.IMREAD_UNCHANGED)) == 7).all())
    except ImportError as error:
        return Check(
            "OpenCV", str(error), "sudo apt-get install -y libgl1 libglib2.0-0 libxcb1, or opencv-python-headless"
        )
    return Check(
        "OpenCV",
        "works" if works else "decodes wrong values",
        "" if works else "pip install --force-reinstall opencv-python",
    )


def check_devices() -> list[Check]:
    """Checks the devices, and whether JAX ignores an accelerator of this machine."""
    import jax
    import keras

    try:
        devices = jax.devices()
    except (RuntimeError, AssertionError) as error:
        requested = os.environ.get("JAX_PLATFORMS", "")
        lines = str(error).strip().splitlines() or [f"JAX cannot start the platform {requested!r}"]
        advice = f"unset JAX_PLATFORMS (now {requested}), or set it to cpu" if requested else "set JAX_PLATFORMS=cpu"
        return [Check("devices", lines[0], _holder_advice() or advice)]
    platform_name = devices[0].platform
    kinds = ", ".join(sorted({device.device_kind for device in devices}))
    checks = [
        Check("Keras backend", keras.backend.backend()),
        Check("devices", f"{len(devices)} x {kinds} ({platform_name}); {os.cpu_count()} CPU cores"),
    ]
    if platform_name == "cpu" and Path("/dev/nvidia0").exists():
        checks.append(Check("GPU", "present, but JAX uses the CPU", install_command("gpu")))
    if platform_name == "cpu" and tpu_device_files():
        fix = _holder_advice() or install_command("tpu")
        checks.append(Check("TPU", "present, but JAX uses the CPU", fix))
    return checks


def check_memory() -> Check:
    """Checks the free memory."""
    free = free_memory()
    if free is None:
        return Check("free memory", "unknown on this system")
    fix = "close other programs, or reduce model.image_size or train.batch_size" if free < MIN_FREE_MEMORY else ""
    return Check("free memory", f"{free / 2**30:.1f} GiB", fix)


def check_disk(folder: Path) -> Check:
    """Checks the free space of the disk that runs are written to."""
    free = shutil.disk_usage(folder).free
    fix = "free some space, or choose another --run-dir" if free < MIN_FREE_DISK else ""
    return Check("free disk", f"{free / 2**30:.1f} GiB in {folder}", fix)


def free_memory() -> int | None:
    """Returns the available memory in bytes, or None if the system does not report it."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    values = dict(line.split(":", 1) for line in lines if ":" in line)
    return int(values["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in values else None


def tpu_device_files() -> list[Path]:
    """Lists the device files of TPUs."""
    found = list(Path("/dev").glob("accel*"))
    vfio = Path("/dev/vfio")
    return found + ([path for path in vfio.iterdir() if path.name.isdigit()] if vfio.is_dir() else [])


def _holder_advice() -> str:
    """Names the processes that use the TPU, or a stale lock file."""
    holders = file_holders([*tpu_device_files(), TPU_LOCK_FILE])
    if holders:
        return "another process uses the TPU: " + ", ".join(f"{pid} ({name})" for pid, name in holders) + "; stop it"
    if TPU_LOCK_FILE.exists() and tpu_device_files():
        return f"no process uses the TPU, but its lock file exists: rm {TPU_LOCK_FILE}"
    return ""


def file_holders(paths: list[Path]) -> list[tuple[int, str]]:
    """Finds other processes that have one of the files open.

    Args:
      paths: device or lock files.

    Returns:
      Process IDs and program names; processes of other users are visible to root only.
    """
    names = {str(path) for path in paths}
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        if int(process.name) == os.getpid():
            continue
        try:
            held = {os.readlink(link) for link in (process / "fd").iterdir()}
            name = (process / "comm").read_text().strip()
        except OSError:
            continue
        if held & names:
            found.append((int(process.name), name))
    return found


def _version(package: str) -> str | None:
    import importlib.metadata

    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
