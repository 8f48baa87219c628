"""The weights that come with the package; free of heavy imports."""

from pathlib import Path

FOLDER = Path(__file__).parent / "pretrained"
"""Each folder in it is a run: `config.yaml`, `best/` and a model card, `README.md`."""


def pretrained_names() -> list[str]:
    """Returns the names of the built-in weights, which commands accept in place of a run folder."""
    return sorted(path.parent.name for path in FOLDER.glob("*/config.yaml"))


def find_run(path: Path) -> Path:
    """Returns the folder of built-in weights for their name, and any other path unchanged.

    A run folder of the same name in the current folder comes first.
    """
    is_name = len(path.parts) == 1 and str(path) in pretrained_names()
    return FOLDER / path if is_name and not (path / "config.yaml").exists() else path


def results_folder(run: Path) -> Path:
    """Returns where results about a run are written: the run, or `runs/NAME` for built-in weights."""
    return Path("runs") / run.name if run.parent == FOLDER else run
