import os
import shutil
from pathlib import Path

import pytest

from cervseg_jax.config import load_config
from cervseg_jax.errors import ConfigError
from cervseg_jax.packaged_recipes import RECIPES, find_recipe, recipe_names, recipe_summary
from tests.helpers import ROOT, refused, run


def test_the_package_holds_the_recipes_of_the_source_tree():
    assert recipe_names() == sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))
    assert os.path.samefile(RECIPES, ROOT / "configs")


def test_recipes_are_listed_with_their_summaries():
    code, stdout, _ = run("recipes")
    assert code == 0
    assert [line.split()[0] for line in stdout.splitlines()] == recipe_names()
    assert all(recipe_summary(name) in stdout for name in recipe_names())
    table = (ROOT / "configs" / "README.md").read_text()
    assert all(f"| `{name}` |" in table for name in recipe_names())


def test_a_name_is_enough_and_data_lie_in_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("quickstart", "quickstart.yaml"):
        assert load_config(name).data.root == tmp_path / "data" / "quickstart"
    (tmp_path / "quickstart").mkdir()
    assert load_config("quickstart").train.epochs == 12


def test_a_file_wins_over_a_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(RECIPES / "tiled.yaml", tmp_path / "quickstart.yaml")
    assert find_recipe("quickstart.yaml").path == Path("quickstart.yaml")
    assert load_config("quickstart.yaml").infer.tiled is not None
    assert load_config("quickstart").infer.tiled is None
    with pytest.raises(ConfigError, match="no such config file or recipe; did you mean 'tiled'"):
        load_config("elsewhere/tiled.yml")


@pytest.mark.parametrize(
    ("target", "root"), [("mine.yaml", "data/quickstart"), ("sub/mine.yaml", "../data/quickstart")]
)
def test_a_copy_names_the_same_data(tmp_path, monkeypatch, target, root):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    code, stdout, stderr = run("recipes", "quickstart", "-o", target)
    assert code == 0, stderr
    assert f"next: cervseg-jax train {target}" in stdout
    assert f"  root: {root}\n" in Path(target).read_text()
    assert f"# Command:  cervseg-jax train {target}\n" in Path(target).read_text()
    assert load_config(target) == load_config("quickstart")
    assert "already exists" in refused(2, "recipes", "quickstart", "-o", target)


def test_a_recipe_can_be_printed():
    code, stdout, _ = run("recipes", "tiled")
    assert code == 0
    assert stdout.startswith("# U-Net trained on tiles")
