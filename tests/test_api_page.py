"""The examples of the page on the Python API print what the page shows."""

import doctest
import logging
import re
import shutil

from tests.helpers import ROOT

PAGE = ROOT / ".readme" / "api.md"


def test_the_page_shows_what_the_examples_print(finished, tmp_path, monkeypatch):
    config, folder, _ = finished
    shutil.copytree(folder, tmp_path / "runs" / "clustered_small", ignore=shutil.ignore_patterns("eval", "run-*"))
    data = config.parent / "data"
    (tmp_path / "recipe.yaml").write_text(config.read_text().replace("root: data", f"root: {data}"))
    for name, index in (("image.png", 0), ("other.png", 1)):
        shutil.copy(data / "test" / "images" / f"disc_{index:03d}.png", tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging.root, "handlers", list(logging.root.handlers))
    monkeypatch.setattr(logging.root, "level", logging.root.level)
    text = re.sub(r"^```.*$", "", PAGE.read_text(), flags=re.MULTILINE)  # the fences would count as output
    examples = doctest.DocTestParser().get_doctest(text, {}, PAGE.name, str(PAGE), 0)
    assert len(examples.examples) == PAGE.read_text().count("\n>>> ") > 15
    assert re.findall(r"^```python\n(?!>>> )", PAGE.read_text(), flags=re.MULTILINE) == []
    output = []
    doctest.DocTestRunner(verbose=False).run(examples, out=output.append)
    assert not output, "".join(output)
    assert sorted(path.name for path in (tmp_path / "found" / "masks").iterdir()) == ["image.png", "other.png"]
