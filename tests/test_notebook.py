"""The notebook runs from top to bottom in a fresh process, and is stored without outputs."""

import json
import os
import subprocess
import sys

from tests.helpers import ENVIRONMENT, ROOT

NOTEBOOK = json.loads((ROOT / "scripts" / "notebook.ipynb").read_text())
CODE_CELLS = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def test_outputs_are_stripped():
    assert NOTEBOOK["nbformat"] == 4
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in CODE_CELLS)
    assert len({cell["id"] for cell in NOTEBOOK["cells"]}) == len(NOTEBOOK["cells"])


def test_cells_run_in_order(tmp_path):
    program = "\n".join("".join(cell["source"]) for cell in CODE_CELLS)
    environment = ENVIRONMENT | {
        "MPLBACKEND": "agg",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
    }
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert "all 8 epochs are done" in done.stdout
    assert "Dice 0." in done.stdout
    assert len(list((tmp_path / "results").rglob("*.*"))) == 4
    count = int(done.stdout.split(" nuclei, uncertainty")[0].rsplit(maxsplit=1)[-1])
    assert count > 3, "the network has learned nothing"
