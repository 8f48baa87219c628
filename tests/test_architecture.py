"""Walls that later work must not move."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "cervseg_jax"

LAYERS = (
    (
        "__init__",
        "errors",
        "typing",
        "components",
        "heads",
        "peers",
        "yaml12",
        "sections",
        "threads",
        "files",
        "bucket",
        "console",
    ),
    ("models", "losses", "metrics", "plots", "pages"),
    ("data.augment", "data.headers", "data.decode", "data.split", "data.outlines"),
    ("config", "data.annotation", "data.labelme", "data.formats", "data.synthetic"),
    ("data", "weights", "reference"),
    ("training", "inference", "evaluation"),
    ("report", "bench"),
    ("cli",),
)
"""A module may import from its own layer and those above it in this table."""


def layer_of(module: str) -> int:
    names = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        if ".".join(parts[:length]) in names:
            return names[".".join(parts[:length])]
    raise AssertionError(f"{module} belongs to no layer")


def module_level_imports(path: Path):
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("cervseg_jax"):
            yield node.module.removeprefix("cervseg_jax").lstrip(".") or "__init__"


MODULES = sorted(path for path in PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
    for imported in module_level_imports(path):
        assert layer_of(imported) <= layer_of(name), f"{name} imports {imported}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_do_one_job(path):
    assert len(path.read_text().splitlines()) <= 350


def test_nothing_reads_images_behind_the_decoders_back():
    for path in MODULES:
        text = path.read_text()
        assert "imread" not in text, path
        assert not re.search(r"\beval\(|import pickle|allow_pickle=True", text), path


def test_another_backend_in_the_process_is_refused():
    code = (
        "import os, sys, types; keras = types.ModuleType('keras'); "
        "keras.backend = types.SimpleNamespace(backend=lambda: 'torch'); "
        "sys.modules['keras'] = keras; import cervseg_jax"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "needs Keras on the JAX backend, got 'torch'" in done.stderr


def test_top_level_is_what_it_should_be():
    tracked = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    names = {line.split("/")[0] for line in tracked.stdout.splitlines()}
    allowed = {"cervseg_jax", "configs", "scripts", "tests", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md"}
    assert {name for name in names if not name.startswith(".")} <= allowed
