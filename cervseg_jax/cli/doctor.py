"""`cervseg-jax doctor`: looks at the machine and says the fix for whatever it finds."""

import importlib.metadata
import os
import platform
import shutil
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from cervseg_jax import __version__
from cervseg_jax.errors import FindingsError

MIN_FREE_MEMORY = 2 * 2**30
MIN_FREE_DISK = 2 * 2**30
TPU_LOCK_FILE = Path("/tmp/libtpu_lockfile")  # noqa: S108 (libtpu's own choice)
PACKAGES = ("jax", "jaxlib", "keras", "optax", "grain", "orbax-checkpoint", "numpy", "opencv-python", "typer")


class Check(NamedTuple):
    """One line of the report."""

    subject: str
    found: str
    fix: str = ""
    """What to do; empty where all is well."""


def run_doctor() -> None:
    """Prints all checks.

    Raises:
      FindingsError: if one of them found something.
    """
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
        table.add_row(mark, check.subject, check.found if not check.fix else f"{check.found}\nfix: {check.fix}")
    Console(soft_wrap=True, highlight=False).print(table)
    findings = [check.subject for check in checks if check.fix]
    if findings:
        raise FindingsError(f"{len(findings)} findings: {', '.join(findings)}")


def check_packages() -> list[Check]:
    """Checks that the packages are installed, and only one build of OpenCV."""
    checks = []
    for name in PACKAGES:
        version = _version(name) or (_version("opencv-python-headless") if name == "opencv-python" else None)
        fix = "" if version else "install again: pip install --force-reinstall cervseg-jax"
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
    return Check("OpenCV", "starts" if works else "reads wrong values", "" if works else "install opencv-python again")


def check_devices() -> list[Check]:
    """Checks the devices, and whether an accelerator of this machine is left unused."""
    import jax
    import keras

    try:
        devices = jax.devices()
    except RuntimeError as error:
        text = str(error).strip().splitlines()[0]
        return [Check("devices", text, _holder_advice() or "see the message; JAX_PLATFORMS=cpu uses the CPU")]
    platform_name = devices[0].platform
    kinds = ", ".join(sorted({device.device_kind for device in devices}))
    checks = [
        Check("Keras backend", keras.backend.backend()),
        Check("devices", f"{len(devices)} x {kinds} ({platform_name}); {os.cpu_count()} CPU cores"),
    ]
    if platform_name == "cpu" and Path("/dev/nvidia0").exists():
        checks.append(Check("GPU", "there, but JAX uses the CPU", "pip install 'cervseg-jax[gpu]'"))
    if platform_name == "cpu" and tpu_device_files():
        fix = _holder_advice() or "pip install 'cervseg-jax[tpu]'"
        checks.append(Check("TPU", "there, but JAX uses the CPU", fix))
    return checks


def check_memory() -> Check:
    """Checks the free memory."""
    free = free_memory()
    if free is None:
        return Check("free memory", "unknown on this system")
    fix = (
        "close other programs, or take a smaller model.image_size or train.batch_size" if free < MIN_FREE_MEMORY else ""
    )
    return Check("free memory", f"{free / 2**30:.1f} GiB", fix)


def check_disk(folder: Path) -> Check:
    """Checks the free space where runs would be written."""
    free = shutil.disk_usage(folder).free
    fix = "free some space, or choose another --run-dir" if free < MIN_FREE_DISK else ""
    return Check("free disk", f"{free / 2**30:.1f} GiB in {folder}", fix)


def free_memory() -> int | None:
    """Returns the bytes that programs can still take, or None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    facts = dict(line.split(":", 1) for line in lines if ":" in line)
    return int(facts["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in facts else None


def tpu_device_files() -> list[Path]:
    """Lists the device files of TPUs."""
    found = list(Path("/dev").glob("accel*"))
    vfio = Path("/dev/vfio")
    return found + ([path for path in vfio.iterdir() if path.name.isdigit()] if vfio.is_dir() else [])


def _holder_advice() -> str:
    """Names the processes that hold the TPU, or a lock file without a holder."""
    holders = file_holders([*tpu_device_files(), TPU_LOCK_FILE])
    if holders:
        return "another process holds the TPU: " + ", ".join(f"{pid} ({name})" for pid, name in holders) + "; end it"
    if TPU_LOCK_FILE.exists() and tpu_device_files():
        return f"nobody holds the TPU, but its lock file is there: rm {TPU_LOCK_FILE}"
    return ""


def file_holders(paths: list[Path]) -> list[tuple[int, str]]:
    """Finds the processes other than this one that have one of the files open.

    Args:
      paths: device or lock files.

    Returns:
      Process ids with the programs' names; those of other users only as root.
    """
    wanted = {str(path) for path in paths}
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        if int(process.name) == os.getpid():
            continue
        try:
            held = {os.readlink(link) for link in (process / "fd").iterdir()}
            name = (process / "comm").read_text().strip()
        except OSError:
            continue
        if held & wanted:
            found.append((int(process.name), name))
    return found


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
