"""Walls that later work must not move."""

import ast
import itertools
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.helpers import ROOT

PACKAGE = ROOT / "cervseg_jax"

MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 60

MODULES = sorted(PACKAGE.rglob("*.py"))


def package_graph() -> dict[str, dict[str, list[str]]]:
    """Which package (or top-level module) imports which, wherever in a file, and the files that do."""
    graph: dict[str, dict[str, list[str]]] = {}
    for path in MODULES:
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        edges = graph.setdefault(parts[0], {})
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "cervseg_jax":
                names = node.module.split(".")[1:2] or [alias.name for alias in node.names]
                for name in names:
                    if name != parts[0] and name != "__version__":
                        edges.setdefault(name, []).append("/".join(parts))
    return graph


def test_packages_form_a_chain():
    graph = package_graph()
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        cycle = error.args[1]
        edges = [f"{a} -> {b}: {', '.join(graph[a][b])}" for b, a in itertools.pairwise(cycle)]
        raise AssertionError("packages import each other:\n" + "\n".join(edges)) from None


@pytest.mark.parametrize("imported", ["cli", "bench", "report"])
def test_nothing_below_imports_an_entry_point(imported):
    importers = {name for name, edges in package_graph().items() if imported in edges}
    assert importers <= {"cli"}, importers


def test_files_and_functions_are_short():
    long = [
        f"{path.relative_to(ROOT)}: {count} lines" for path in MODULES if (count := num_lines(path)) > MAX_FILE_LINES
    ]
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and code_lines(node) > MAX_FUNCTION_LINES:
                long.append(f"{path.relative_to(ROOT)}: {node.name} has {code_lines(node)} lines of code")
    assert not long, "\n".join(long)


def num_lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def code_lines(node: ast.FunctionDef) -> int:
    """Lines of a function without its docstring, and without annotated options, the table of a command's."""
    has_docstring = ast.get_docstring(node, clean=False) is not None
    first = node.body[0]
    num_options = sum(
        getattr(option.annotation, "id", "").endswith(("Option", "Argument")) for option in node.args.args
    )
    docstring_lines = first.end_lineno - first.lineno + 1 if has_docstring else 0
    return node.end_lineno - node.lineno + 1 - docstring_lines - num_options


def test_nothing_reads_images_behind_the_decoders_back():
    for path in MODULES:
        text = path.read_text()
        assert "imread" not in text, path
        assert not re.search(
            r"\beval\(|import pickle|allow_pickle=True", text.replace("import pickle  # noqa: S403", "")
        ), path


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


def test_readme_is_short_and_its_links_exist():
    text = (ROOT / "README.md").read_text()
    assert len(text.encode()) <= 9000
    for page in (ROOT / "README.md", *(ROOT / ".readme").glob("*.md"), ROOT / "configs" / "README.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert "://" in target or (page.parent / target).exists(), f"{page.name}: {target}"
