"""Installation commands for optional dependencies, right for how the package was installed."""

import re
from pathlib import Path

_SOURCE_TREE = Path(__file__).resolve().parents[1]
_REQUIREMENT = re.compile(r"""^(?P<package>[^;]+?)\s*;.*extra\s*==\s*['"](?P<extra>[^'"]+)['"]""")


def install_command(extra: str) -> str:
    """Returns the command that installs an extra of this package.

    In a source tree it names the tree. Otherwise it names the packages themselves, because the extra can be resolved
    by name only where the package is on an index.

    Args:
      extra: a key of `project.optional-dependencies`.

    Returns:
      A shell command.
    """
    if (_SOURCE_TREE / "pyproject.toml").is_file():
        tree = "." if Path.cwd() == _SOURCE_TREE else str(_SOURCE_TREE)
        return f"pip install -e '{tree}[{extra}]'"
    packages = required_packages(extra)
    return "pip install " + (" ".join(f"'{name}'" for name in packages) or f"'cervseg-jax[{extra}]'")


def reinstall_command() -> str:
    """Returns the command that installs the package again with its dependencies."""
    if (_SOURCE_TREE / "pyproject.toml").is_file():
        return f"pip install --force-reinstall -e '{_SOURCE_TREE}'"
    return "pip install --force-reinstall " + " ".join(f"'{name}'" for name in required_packages(None))


def required_packages(extra: str | None) -> list[str]:
    """Returns the requirements of an extra, or of the package itself for None; empty if it is not installed."""
    import importlib.metadata  # slow to import, and only failures need it

    try:
        requirements = importlib.metadata.requires("cervseg-jax") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    if extra is None:
        return [line.strip() for line in requirements if ";" not in line]
    matches = [_REQUIREMENT.match(line) for line in requirements]
    return [match["package"] for match in matches if match and match["extra"] == extra]
