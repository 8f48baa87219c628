"""Eight CPU devices for all tests, and small datasets."""

import atexit
import os
import shutil
import tempfile

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

from pathlib import Path

import cv2
import jax
import numpy as np
import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"
ROOT = Path(__file__).resolve().parents[1]


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


def draw_discs(folder: Path, *, count: int, size: tuple[int, int] = (48, 40), seed: int = 0) -> None:
    """Writes images with dark discs on bright ground, and their exact masks."""
    rng = np.random.default_rng(seed)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    rows, columns = np.mgrid[: size[0], : size[1]]
    for index in range(count):
        mask = np.zeros(size, np.uint8)
        for _ in range(3):
            center, radius = rng.uniform(0.2, 0.8, 2) * size, rng.uniform(4, 8)
            mask |= ((rows - center[0]) ** 2 + (columns - center[1]) ** 2 < radius**2).astype(np.uint8)
        image = np.where(mask[..., None] > 0, (90, 60, 70), (230, 220, 225)) + rng.normal(0, 8, (*size, 3))
        cv2.imwrite(str(folder / "images" / f"disc_{index:03d}.png"), np.clip(image, 0, 255).astype(np.uint8))
        cv2.imwrite(str(folder / "masks" / f"disc_{index:03d}.png"), mask * 255)


@pytest.fixture
def tiny_dataset(tmp_path):
    """Train, valid and test with discs: 6, 3 and 5 images of 48x40 pixels."""
    root = tmp_path / "data"
    for seed, (split, count) in enumerate((("train", 6), ("valid", 3), ("test", 5))):
        draw_discs(root / split, count=count, seed=seed)
    return root


TINY_CONFIG = """
model:
  name: unet
  image_size: [32, 48]
  args: {base_filters: 4, levels: 3, dropout_rate: 0.1}
data:
  root: data
augment:
  operations:
    - {name: flip}
    - {name: affine, probability: 0.5}
train:
  epochs: 3
  batch_size: 4
  learning_rate: 5e-3
  seed: 3
infer:
  num_infer_images: 2
"""


@pytest.fixture
def tiny_config(tmp_path, tiny_dataset):
    """Path of a recipe that trains in seconds on the discs."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY_CONFIG)
    return path


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A small finished run: (config, run folder, stdout)."""
    from tests.test_command_line import run

    folder = tmp_path_factory.mktemp("finished")
    for seed, (split, count) in enumerate((("train", 6), ("valid", 3), ("test", 5))):
        draw_discs(folder / "data" / split, count=count, seed=seed)
    (folder / "tiny.yaml").write_text(TINY_CONFIG)
    code, stdout, stderr = run("train", folder / "tiny.yaml", "--run-dir", folder / "run")
    assert code == 0, stderr
    return folder / "tiny.yaml", folder / "run", stdout
