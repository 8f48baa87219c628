"""Eight CPU devices for all tests, and small datasets."""

import atexit
import os
import shutil
import tempfile
import threading

if "PYTEST_XDIST_WORKER" not in os.environ:  # the workers get the variables of the process that starts them
    # Compiling takes most of the tests' time: what they compile themselves is optimized less, and compiled once. The
    # commands that they run in processes of their own are compiled as users' are.
    cache = tempfile.mkdtemp(prefix="cervseg_jax_test_cache_")
    atexit.register(shutil.rmtree, cache, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = cache
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    os.environ["XLA_FLAGS"] = f"{flags} {os.environ.get('XLA_FLAGS', '')}"
    os.environ["JAX_PLATFORMS"] = "cpu"

import cervseg_jax  # noqa: F401, I001 (selects the backend before anything imports Keras)


import jax
import numpy as np
import pytest

from cervseg_jax.storage.cache import machine_cache
from cervseg_jax.storage.store import file_system, require_bucket
from tests.bucket_server import Bucket
from tests.helpers import SHARED, TINY_CONFIG, draw_discs, run


def pytest_configure() -> None:
    assert jax.device_count() == 8, "XLA_FLAGS came too late"


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def golden():
    """Folder of numbers computed by the reference implementation."""
    folder = SHARED / "golden"
    if not folder.is_dir():
        pytest.skip("the reference's golden numbers are not on this machine")
    return folder


@pytest.fixture
def tiny_dataset(tmp_path):
    """Train, valid and test with discs: 6, 3 and 5 images of 48x40 pixels."""
    root = tmp_path / "data"
    for seed, (split, count) in enumerate((("train", 6), ("valid", 3), ("test", 5))):
        draw_discs(root / split, count=count, seed=seed)
    return root


@pytest.fixture
def tiny_config(tmp_path, tiny_dataset):
    """Path of a recipe that trains in seconds on the discs."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY_CONFIG)
    return path


@pytest.fixture
def bucket():
    """A server that stands for a bucket, `gs://mine`."""
    server = Bucket()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def store(bucket, tmp_path, monkeypatch):
    """The bucket as this process sees it, with a cache of its own."""
    for name, value in bucket.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CERVSEG_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("cervseg_jax.storage.retrying.FIRST_WAIT_SECONDS", 0.01)
    monkeypatch.setattr("cervseg_jax.storage.retrying.PAGE_WAITS_SECONDS", (0.01, 0.01, 0.01))
    for function in (file_system, require_bucket, machine_cache):
        function.cache_clear()
    yield bucket
    for function in (file_system, require_bucket, machine_cache):
        function.cache_clear()


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A small finished run: (config, run folder, stdout)."""
    folder = tmp_path_factory.mktemp("finished")
    for seed, (split, count) in enumerate((("train", 6), ("valid", 3), ("test", 5))):
        draw_discs(folder / "data" / split, count=count, seed=seed)
    (folder / "tiny.yaml").write_text(TINY_CONFIG)
    code, stdout, stderr = run("train", folder / "tiny.yaml", "--run-dir", folder / "run")
    assert code == 0, stderr
    return folder / "tiny.yaml", folder / "run", stdout
