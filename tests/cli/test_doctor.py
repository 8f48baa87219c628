"""`doctor`: its lines, and the exit code that follows from them."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from cervseg_jax.cli import doctor
from tests.helpers import run


@pytest.fixture
def sound_machine(monkeypatch):
    """Replaces what depends on the machine by checks without a finding."""
    monkeypatch.setattr(doctor, "check_packages", lambda: [doctor.Check("jax", "1.2.3")])
    monkeypatch.setattr(doctor, "free_memory", lambda: 8 * 2**30)
    monkeypatch.setattr(doctor, "check_disk", lambda folder: doctor.Check("free disk", "9.0 GiB"))
    monkeypatch.setattr(doctor, "tpu_device_files", list)


def lines_of(stdout):
    return [line.split() for line in stdout.splitlines()]


def test_without_a_finding_it_exits_with_0(sound_machine):
    code, stdout, stderr = run("doctor")
    assert (code, stderr) == (0, ""), stdout
    lines = lines_of(stdout)
    assert all(line[0] == "ok" for line in lines)
    assert ["ok", "jax", "1.2.3"] in lines
    assert ["ok", "OpenCV", "works"] in lines
    assert ["ok", "Keras", "backend", "jax"] in lines
    assert ["ok", "free", "memory", "8.0", "GiB"] in lines
    assert any(line[:5] == ["ok", "devices", "8", "x", "cpu"] for line in lines)


def test_findings_are_marked_with_their_fix_and_exit_with_1(sound_machine, monkeypatch):
    monkeypatch.setattr(doctor, "free_memory", lambda: 2**30)
    monkeypatch.setattr(doctor, "check_packages", lambda: [doctor.Check("optax", "not installed", "install again: X")])
    code, stdout, stderr = run("doctor")
    assert code == 1
    assert stderr == "error: problems found: optax, free memory\n"
    lines = lines_of(stdout)
    assert [line[1] for line in lines if line[0] == "!!"] == ["optax", "free"]
    index = lines.index(["!!", "free", "memory", "1.0", "GiB"])
    assert lines[index + 1][:3] == ["fix:", "close", "other"]
    assert ["fix:", "install", "again:", "X"] in lines


def test_missing_and_doubled_packages_are_found(monkeypatch):
    versions = {name: "1" for name in doctor.PACKAGES}
    monkeypatch.setattr(doctor, "_version", versions.get)
    assert [check.fix for check in doctor.check_packages()] == [""] * len(doctor.PACKAGES)
    versions["opencv-python-headless"] = "1"
    assert [check.subject for check in doctor.check_packages() if check.fix] == ["OpenCV builds"]
    del versions["opencv-python"], versions["jax"]  # one build of OpenCV is enough
    assert [check.subject for check in doctor.check_packages() if check.fix] == ["jax"]


def test_a_disk_without_space_is_found(monkeypatch):
    free = 2**30
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))
    assert doctor.check_disk(Path("runs")) == doctor.Check(
        "free disk", "1.0 GiB in runs", "free some space, or choose another --run-dir"
    )
    free = doctor.MIN_FREE_DISK
    assert not doctor.check_disk(Path("runs")).fix
