"""Shards of a call leave the tables that one call would have left."""

import shutil

import pytest

from cervseg_jax.console import Reporter
from cervseg_jax.errors import ConfigError, DataError
from cervseg_jax.segmentation.merge import merge_folders
from cervseg_jax.segmentation.outputs import DEFAULT_OUTPUTS
from cervseg_jax.segmentation.shares import Shard
from tests.segmentation.test_folder import Infer

TABLES = ("images.csv", "nuclei.csv", "coco.json", "failed.csv")
OUTPUTS = (*DEFAULT_OUTPUTS, "coco")


def merge(folders, out):
    return merge_folders(folders, out, reporter=Reporter(quiet=True))


def files(folder):
    """Returns the files of an output folder with their content."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.fixture
def infer(tmp_path, monkeypatch):
    """`infer` on nine images, of which two share a stem and one is broken."""
    infer = Infer(tmp_path, monkeypatch)
    for number, name in enumerate("cdefgh"):
        infer.write(name, radius=5 + number)
    shutil.copy(infer.images / "c.png", infer.images / "a.bmp.png")
    (infer.images / "e.jpg").write_bytes(b"nonsense")
    return infer


def shards(infer, out_of, total=3, **options):
    """Calls each shard, with the folder that `out_of` gives its number."""
    counts = []
    for number in range(1, total + 1):
        infer.out = out_of(number)
        counts.append(infer.call(shard=Shard(number, total), outputs=OUTPUTS, **options))
    return counts


def test_the_last_shard_in_a_folder_writes_the_tables_of_one_call(infer, tmp_path):
    infer.out = tmp_path / "one"
    assert infer.call(outputs=OUTPUTS) == (9, 1)
    one = files(infer.out)
    shards(infer, lambda number: tmp_path / "shared")
    assert files(tmp_path / "shared") == one
    assert all(name in one for name in TABLES)
    with pytest.raises(ConfigError, match="results of this shard already; add --resume"):
        infer.call(shard=Shard(1, 3), outputs=OUTPUTS)
    assert files(tmp_path / "shared") == one


def test_tables_of_separate_folders_are_merged(infer, tmp_path):
    infer.out = tmp_path / "one"
    infer.call(outputs=OUTPUTS)
    folders = [tmp_path / f"part_{number}" for number in (1, 2, 3)]
    shards(infer, lambda number: folders[number - 1])
    assert not any((folder / name).exists() for folder in folders for name in TABLES)
    outcomes = merge(folders, tmp_path / "merged")
    assert (len(outcomes.done), len(outcomes.failed)) == (9, 1)
    for name in TABLES:
        assert (tmp_path / "merged" / name).read_bytes() == (tmp_path / "one" / name).read_bytes(), name
    names = [path.name for folder in folders for path in (folder / "masks").iterdir()]
    assert sorted(names) == sorted(path.name for path in (tmp_path / "one" / "masks").iterdir())


def test_another_number_of_shards_goes_on_where_others_stopped(infer, tmp_path):
    infer.out = tmp_path / "one"
    infer.call(outputs=OUTPUTS)
    one = files(infer.out)
    infer.out = tmp_path / "shared"
    infer.call(shard=Shard(2, 3), outputs=OUTPUTS)
    before = {path: path.stat().st_mtime_ns for path in (infer.out / "masks").iterdir()}
    shards(infer, lambda number: tmp_path / "shared", total=2, resume=True)
    assert files(infer.out) == one
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_overwriting_a_shard_leaves_the_others_alone(infer, tmp_path):
    shards(infer, lambda number: tmp_path / "shared")
    before = {path: path.stat().st_mtime_ns for path in infer.out.rglob("*/*") if path.suffix in (".png", ".csv")}
    infer.call(shard=Shard(1, 3), outputs=OUTPUTS, overwrite=True)
    changed = {path.stem for path, written in before.items() if path.stat().st_mtime_ns != written}
    assert 0 < len(changed) < 9
    assert (infer.out / "images.csv").exists()


def test_what_cannot_be_merged_is_one_message(infer, tmp_path):
    folders = [tmp_path / f"part_{number}" for number in (1, 2)]
    shards(infer, lambda number: folders[number - 1], total=2)
    with pytest.raises(DataError, match=r"of 10 images have no result yet: .*; call their shards again with --resume"):
        merge(folders[:1], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    (folders[0] / "nuclei").rename(folders[0] / "elsewhere")
    with pytest.raises(DataError, match=r"nuclei/.*csv: is missing"):
        merge(folders, tmp_path / "merged")
    infer.write("new", radius=9)
    infer.out = folders[1]
    infer.call(shard=Shard(2, 2), outputs=OUTPUTS, resume=True)
    with pytest.raises(ConfigError, match=r"other images than that of .*part_1 \(11 and 10"):
        merge(folders, tmp_path / "merged")
    with pytest.raises(ConfigError, match=r"other settings \(outputs\)"):
        infer.call(shard=Shard(1, 2))
    infer.out = tmp_path / "part_3"
    infer.call(shard=Shard(2, 2), outputs=("masks",))
    with pytest.raises(ConfigError, match=r"part_3: was made with other settings \(outputs\) than .*part_1"):
        merge([folders[0], infer.out], tmp_path / "merged")
    with pytest.raises(ConfigError, match="is not an output folder of infer"):
        merge([tmp_path], tmp_path / "merged")
