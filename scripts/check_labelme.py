"""Opens the annotations of a folder of `suggest` in LabelMe's own window, without a screen, and saves them there.

    PYTHON_WITH_LABELME scripts/check_labelme.py TODO [--tick NAME ...] [--edit NAME ...]

Run it with the Python of an environment that holds `labelme` 6; it needs nothing else. Each file must show its image,
all of its outlines and the flag `checked`, and keep its outlines when it is saved. `--tick` ticks that flag before a
file is saved; `--edit` removes the first outline and moves a corner of the last one, as a person would.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def points_of(path: Path) -> list[Any]:
    """Returns label, group and points of each shape in a file."""
    shapes = json.loads(path.read_text(encoding="utf-8"))["shapes"]
    return [[shape["label"], shape["group_id"], shape["points"]] for shape in shapes]


def check(window: Any, path: Path, *, tick: bool, edit: bool) -> str:
    """Opens and saves one file; returns "" or what is wrong."""
    from PyQt5 import QtCore  # pyright: ignore[reportMissingImports]

    before = points_of(path)
    window._load_file(str(path))
    canvas = window._canvas_widgets.canvas
    flags = window._docks.flag_list
    size = [window._image.width(), window._image.height()]
    document = json.loads(path.read_text(encoding="utf-8"))
    if size != [document["imageWidth"], document["imageHeight"]]:
        return f"the picture has {size}"
    if len(canvas.shapes) != len(before):
        return f"shows {len(canvas.shapes)} of {len(before)} outlines"
    if [flags.item(row).text() for row in range(flags.count())] != ["checked"]:
        return "does not show the flag"
    if tick:
        flags.item(0).setCheckState(QtCore.Qt.Checked)
    if edit:
        canvas.shapes[-1].points[0] += QtCore.QPointF(2, 1)
        window.remove_labels([canvas.shapes[0]])
    if not window.save_labels(str(path)):
        return "is not saved"
    after = points_of(path)
    if not edit and after != before:
        return "outlines changed when it was saved"
    return "" if not edit or len(after) == len(before) - 1 else "the edit was not saved"


def main(arguments: Sequence[str] | None = None) -> None:
    """Checks each file and exits with 1 if any is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tick", nargs="*", default=[], metavar="NAME", help="stems of files")
    parser.add_argument("--edit", nargs="*", default=[], metavar="NAME", help="stems of files")
    options = parser.parse_args(arguments)
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    import labelme.app  # pyright: ignore[reportMissingImports]
    from PyQt5 import QtWidgets  # pyright: ignore[reportMissingImports]

    application = QtWidgets.QApplication([])
    window = labelme.app.MainWindow(config_overrides={"with_image_data": False})
    num_wrong = 0
    for path in sorted(options.folder.glob("*.json")):
        problem = check(window, path, tick=path.stem in options.tick, edit=path.stem in options.edit)
        num_wrong += bool(problem)
        print(f"{path.name}: {problem or f'{len(points_of(path))} outlines'}", flush=True)
    print(f"labelme {labelme.__version__}: {num_wrong} files are wrong")
    application.quit()
    sys.exit(bool(num_wrong))


if __name__ == "__main__":
    main()
