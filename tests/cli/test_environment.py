"""What the environment of a process does to commands; each test starts processes of its own."""

import json
import os
import subprocess
import sys

import pytest

from cervseg_jax.cli.environment import set_compilation_cache
from tests.helpers import COMMAND, ENVIRONMENT

HEAVY = ("jax", "keras", "numpy", "cv2", "orbax", "grain", "matplotlib", "pydantic", "rich", "yaml")


def test_help_imports_nothing_heavy():
    code = f"import sys, cervseg_jax.cli.app; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.stdout.strip() == "[]", done.stderr


def test_a_keras_json_of_another_project_changes_nothing(tmp_path):
    settings = {"image_data_format": "channels_first", "backend": "tensorflow", "floatx": "float32", "epsilon": 1e-7}
    (tmp_path / "keras.json").write_text(json.dumps(settings))
    code = "import cervseg_jax.models, keras; print(keras.config.image_data_format(), keras.backend.backend())"
    environment = {**ENVIRONMENT, "KERAS_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.split() == ["channels_last", "jax"], done.stderr


@pytest.mark.parametrize("text", ["[]", '{"epsilon": "x"}', '{"floatx": "float99"}'])
def test_a_keras_json_that_keras_refuses_is_one_line(tmp_path, text):
    (tmp_path / "keras.json").write_text(text)
    code, stderr = run_limited("true", ["models", "unet"], KERAS_HOME=str(tmp_path))
    assert code == 2
    assert stderr.startswith(f"error: {tmp_path}/keras.json: Keras refuses it: ")
    assert len(stderr.splitlines()) == 1


def run_limited(limit, arguments, **variables):
    """Runs a command after some shell code; returns (exit code, stderr)."""
    command = ["bash", "-c", f'{limit}; exec "$@"', "-", *COMMAND, *map(str, arguments)]
    environment = {**ENVIRONMENT, **variables}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_a_platform_without_devices_is_one_line(finished, tmp_path, platform):
    config, folder, _ = finished
    images = config.parent / "data" / "test" / "images"
    for arguments in (
        ("infer", folder, "--images", images, "--out", tmp_path / "out"),
        ("train", config, "--run-dir", tmp_path / "run"),
        ("eval", folder),
    ):
        code, stderr = run_limited("true", arguments, JAX_PLATFORMS=platform)
        assert code == 2
        (line,) = [line for line in stderr.splitlines() if line.startswith("error: ")]
        assert line.startswith(f"error: JAX_PLATFORMS={platform}: JAX finds no such device")
    assert run_limited("true", ["doctor"], JAX_PLATFORMS=platform)[0] == 1


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="address space is limited on Linux alone")
@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ("ulimit -v 1000000", "the address space is limited to 0.95 GiB"),
        ("ulimit -v 500000", "the address space is limited to 0.48 GiB"),
        ("ulimit -n 32", "the number of open files is limited to 32"),
        ("unset HOME", None),
    ],
)
def test_small_limits_end_no_command_in_a_traceback(finished, tmp_path, limit, message):
    config, folder, _ = finished
    data = config.parent / "data"
    for arguments in (
        ("train", config, "--run-dir", tmp_path / "run", "--set", "train.epochs=1", "--quiet"),
        ("infer", folder, "--images", data / "test" / "images", "--out", tmp_path / "out", "--quiet"),
        ("report", folder, "--out", tmp_path / "report.html", "--quiet"),
        ("synth", tmp_path / "drawn", "--images", 1, "--size", 64, 64, "--quiet"),
        ("stats", data, "--out", tmp_path / "stats", "--quiet"),
        ("models", "unet", "--no-cost"),
        ("recipes",),
    ):
        code, stderr = run_limited(limit, arguments, TMPDIR="/nonexistent")
        expected = 0 if message is None or arguments[0] == "recipes" else 2
        assert expected == 0 or f"error: {message}" in stderr, (arguments, stderr)
        assert code == expected, (arguments, code, stderr)
        assert stderr.count("error: ") == (code == 2), (arguments, stderr)


def test_there_is_no_compilation_cache_where_it_cannot_be_written(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for can_write in (True, False):
        monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
        monkeypatch.setattr(os, "access", lambda path, mode, can_write=can_write: can_write)
        set_compilation_cache()
        assert ("JAX_COMPILATION_CACHE_DIR" in os.environ) == can_write
    assert list(tmp_path.iterdir()) == []
