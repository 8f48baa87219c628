import csv
import json
import os
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

from cervseg_jax.annotations.outlines import draw_instances
from cervseg_jax.config import load_config
from cervseg_jax.console import Reporter
from cervseg_jax.curation.audit import audit
from cervseg_jax.curation.collect import collect
from cervseg_jax.curation.dataset_folder import write_scenes
from cervseg_jax.curation.geometry import Geometry, cut_tiles
from cervseg_jax.curation.leaks import source_of
from cervseg_jax.curation.prepare import prepare
from cervseg_jax.curation.recipe import Recipe
from cervseg_jax.curation.reference_dataset import build_reference_dataset
from cervseg_jax.curation.registration import registration
from cervseg_jax.curation.similarity import near_pairs, perceptual_hash
from cervseg_jax.curation.statistics import write_statistics
from cervseg_jax.curation.synthetic import draw_scene
from cervseg_jax.data.pairs import find_pairs
from cervseg_jax.data.samples import whole_truth
from cervseg_jax.errors import ConfigError, DataError
from cervseg_jax.files import TEMPORARY_PREFIX, temporary_name
from cervseg_jax.schema import DataConfig
from tests.helpers import SHARED

QUIET = Reporter(quiet=True).progress


def make(source, out, recipe=None, resumed=lambda: None):
    return prepare(source, out, recipe or Recipe(valid=0.2, test=0.2), progress=QUIET, is_resumed=resumed)


def manifest_of(out):
    with (out / "manifest.csv").open() as file:
        return list(csv.DictReader(file))


def bytes_of(out):
    return {path.relative_to(out): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def label_map(path):
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Eight drawn scenes of 128x160 pixels with LabelMe files."""
    folder = tmp_path_factory.mktemp("drawn") / "s"
    write_scenes(folder, num_images=8, seed=3, size=(128, 160))
    (folder / "instances").rename(folder / "truth")  # so that the LabelMe files are what is used
    return folder


@pytest.fixture
def small(tmp_path):
    """Five drawn scenes, to be broken by a test."""
    folder = tmp_path / "s"
    write_scenes(folder, num_images=5, seed=4, size=(64, 64))
    (folder / "instances").rename(tmp_path / "truth")
    return folder


def test_a_dataset_from_labelme_files(drawn, tmp_path):
    made = make(drawn, tmp_path / "d")
    rows = manifest_of(tmp_path / "d")
    assert len(rows) == len(made.records) == 8
    assert {row["split"] for row in rows} == {"train", "valid", "test"}
    for row in rows:
        folder = tmp_path / "d" / row["split"]
        name = f"{row['stem']}.png"
        np.testing.assert_array_equal(label_map(folder / "images" / name), label_map(drawn / "images" / name))
        labels, mask = label_map(folder / "instances" / name), label_map(folder / "masks" / name)
        assert labels.dtype == np.uint16
        assert set(np.unique(mask)) <= {0, 255}
        np.testing.assert_array_equal(labels > 0, mask > 0)
        truth = label_map(drawn / "truth" / name)
        assert ((truth > 0) != (labels > 0)).mean() < 1e-3
        assert int(row["num_nuclei"]) == len(np.unique(labels)) - 1
    facts = json.loads((tmp_path / "d" / "dataset.json").read_text())
    assert facts["state"] == "finished"
    assert "smaller nuclei lie on top" in facts["z_order"]
    assert not (tmp_path / "d" / ".records").exists()


@pytest.mark.parametrize("geometry", [Geometry(), Geometry(tile=(64, 80)), Geometry(padding="square", size=(200, 180))])
def test_nuclei_stay_whole_where_others_cover_them(drawn, tmp_path, geometry):
    """Against the outlines of the LabelMe files, drawn one by one."""
    make(drawn, tmp_path / "d", Recipe(geometry=geometry, valid=0.2, test=0.2, variants=1))
    num_covered = 0
    for split, pairs in find_pairs(DataConfig(root=tmp_path / "d"))[0].items():
        for pair in pairs:
            if pair.stem.endswith("_v01"):
                num_covered += pair.covered_path is not None
                continue
            labelme = tmp_path / "d" / split / "labelme" / f"{pair.stem}.json"
            shapes = json.loads(labelme.read_text())["shapes"]
            shape = label_map(pair.mask_path).shape
            expected = [draw_instances([[np.array(entry["points"])]], shape=shape) > 0 for entry in shapes]
            expected = [mask for mask in expected if mask.any()]
            truth = whole_truth(pair, shape)
            assert len(truth) == len(expected)
            for extent, mask in zip(truth.values(), expected, strict=True):
                drawn_extent = np.zeros(shape, bool)
                drawn_extent[extent.window] = extent.inside
                np.testing.assert_array_equal(drawn_extent, mask)
            num_covered += pair.covered_path is not None
    assert num_covered > 4


def test_label_maps_bring_their_covered_nuclei(tmp_path):
    source = tmp_path / "s"
    write_scenes(source, num_images=4, seed=3, size=(128, 160))
    (source / "labelme").rename(tmp_path / "labelme")
    make(source, tmp_path / "d", Recipe(valid=0.25, test=0.25, annotations="instances"))
    make(
        source, tmp_path / "t", Recipe(valid=0.25, test=0.25, annotations="instances", geometry=Geometry(tile=(64, 80)))
    )
    (given,) = find_pairs(DataConfig(root=_with_masks(source)), whole=True)[0].values()
    expected = {pair.stem: whole_truth(pair, (128, 160)) for pair in given}
    found = {pair.stem: pair for pairs in find_pairs(DataConfig(root=tmp_path / "d"))[0].values() for pair in pairs}
    for stem, nuclei in expected.items():
        for label, extent in whole_truth(found[stem], (128, 160)).items():
            np.testing.assert_array_equal(extent.inside, nuclei[label].inside)
    tiles = {pair.stem: pair for pairs in find_pairs(DataConfig(root=tmp_path / "t"))[0].values() for pair in pairs}
    area = sum(extent.area for pair in tiles.values() for extent in whole_truth(pair, (64, 80)).values())
    assert area == sum(extent.area for nuclei in expected.values() for extent in nuclei.values())


def _with_masks(folder):
    """Adds the masks of the label maps, so that the folder is a dataset."""
    (folder / "masks").mkdir()
    for path in (folder / "instances").iterdir():
        cv2.imwrite(str(folder / "masks" / path.name), np.uint8(label_map(path) > 0) * 255)
    return folder


def test_training_sees_the_groups_of_the_manifest(drawn, tmp_path, tiny_config):
    make(drawn, tmp_path / "d", Recipe(geometry=Geometry(tile=(64, 80)), valid=0.2, test=0.2))
    found, problems = find_pairs(load_config(tiny_config, [f"data.root={tmp_path / 'd'}"]).data)
    assert problems == []
    groups = {split: {pair.group for pair in pairs} for split, pairs in found.items()}
    assert sum(map(len, groups.values())) == 8  # sources, not tiles
    assert len(found["train"]) == 4 * len(groups["train"])


def test_variants_are_of_training_images_alone_and_repeat(drawn, tmp_path):
    recipe = Recipe(valid=0.2, test=0.2, variants=3)
    make(drawn, tmp_path / "v", recipe)
    rows = manifest_of(tmp_path / "v")
    augmented = [row for row in rows if row["transform"].endswith("augmented")]
    train = [row for row in rows if row["split"] == "train"]
    assert {row["split"] for row in augmented} == {"train"}
    assert len(augmented) == 3 * len(train) / 4
    for row in augmented:
        folder, name = tmp_path / "v" / "train", f"{row['stem']}.png"
        labels, mask = label_map(folder / "instances" / name), label_map(folder / "masks" / name)
        np.testing.assert_array_equal(labels > 0, mask > 0)
        original = label_map(folder / "images" / f"{row['stem'].rpartition('_v')[0]}.png")
        assert not np.array_equal(label_map(folder / "images" / name), original)
    make(drawn, tmp_path / "again", recipe)
    assert bytes_of(tmp_path / "v") == bytes_of(tmp_path / "again")
    assert audit(tmp_path / "v", progress=QUIET).findings == []


def test_small_nuclei_lie_on_top_and_the_large_ones_stay_whole_in_the_polygons(tmp_path):
    source = tmp_path / "s"
    source.mkdir()
    cv2.imwrite(str(source / "a.png"), np.full((40, 40, 3), 200, np.uint8))
    boxes = [[[10, 10], [20, 10], [20, 20], [10, 20]], [[5, 5], [35, 5], [35, 35], [5, 35]]]
    shapes = [{"label": "n", "shape_type": "polygon", "points": box} for box in boxes]
    (source / "a.json").write_text(json.dumps({"shapes": shapes}))
    for name in ("b", "c"):
        cv2.imwrite(str(source / f"{name}.png"), np.random.default_rng(ord(name)).integers(0, 255, (40, 40, 3)))
        (source / f"{name}.json").write_text(json.dumps({"shapes": shapes}))
    make(source, tmp_path / "d")
    (path,) = (tmp_path / "d").glob("*/instances/a.png")
    labels = label_map(path)
    assert labels[15, 15] == 2
    assert (labels == 2).sum() == 100
    assert (labels == 1).sum() == 800
    document = json.loads((path.parents[1] / "labelme" / "a.json").read_text())
    assert document["shapes"][0]["points"] == [[5, 5], [35, 5], [35, 35], [5, 35]]


def test_padding_resizing_and_tiles_keep_the_truth_in_place(drawn, tmp_path):
    recipe = Recipe(geometry=Geometry("square", (96, 96)), valid=0.2, test=0.2)
    make(drawn, tmp_path / "p", recipe)
    for row in manifest_of(tmp_path / "p"):
        folder, name = tmp_path / "p" / row["split"], f"{row['stem']}.png"
        image = label_map(folder / "images" / name)
        assert image.shape == (96, 96, 3)
        assert row["transform"] == "x*0.6+0 y*0.6+9.6"
        truth = np.zeros((160, 160), np.uint16)
        truth[16:144] = label_map(drawn / "truth" / name)
        back = cv2.resize(label_map(folder / "masks" / name), (160, 160), interpolation=cv2.INTER_NEAREST) > 0
        assert 2 * (back & (truth > 0)).sum() / (back.sum() + (truth > 0).sum()) > 0.9
    make(drawn, tmp_path / "t", Recipe(geometry=Geometry(tile=(64, 64)), valid=0.2, test=0.2))
    rows = manifest_of(tmp_path / "t")
    assert len(rows) == 8 * 2 * 3
    assert len({(row["group"], row["split"]) for row in rows}) == 8  # all tiles of a source stay together
    stem = rows[0]["group"]
    whole = np.zeros((128, 192), np.uint8)
    for row in (row for row in rows if row["group"] == stem):
        r, c = int(row["stem"][-6:-4]), int(row["stem"][-2:])
        tile = label_map(tmp_path / "t" / row["split"] / "masks" / f"{row['stem']}.png")
        whole[r * 64 : r * 64 + 64, c * 64 : c * 64 + 64] = tile
    assert ((whole[:, :160] > 0) != (label_map(drawn / "truth" / f"{stem}.png") > 0)).mean() < 2e-3


def test_reference_padding_takes_pixel_two_two():
    image = np.random.default_rng(0).integers(0, 256, (20, 40, 3), np.uint8)
    (tile,) = cut_tiles(image, None, Geometry("square_reference"))
    assert tile.image.shape == (40, 40, 3)
    np.testing.assert_array_equal(tile.image[0, 0], image[2, 2])
    np.testing.assert_array_equal(tile.image[10:30], image)


def test_same_input_same_dataset_whatever_the_order(drawn, tmp_path):
    make(drawn, tmp_path / "one")
    make(drawn, tmp_path / "two")
    one, two = bytes_of(tmp_path / "one"), bytes_of(tmp_path / "two")
    assert one == two
    make(drawn, tmp_path / "three", Recipe(valid=0.2, test=0.2, seed=5))
    splits = [{row["stem"]: row["split"] for row in manifest_of(tmp_path / name)} for name in ("one", "three")]
    assert splits[0] != splits[1]


def test_interrupted_work_is_taken_up(drawn, tmp_path, monkeypatch):
    make(drawn, tmp_path / "straight")
    from cervseg_jax.curation import prepare as module

    build, calls = module.build_source, []

    def failing(entry, *rest):
        calls.append(entry.item.stem)
        if len(calls) > 3:
            raise KeyboardInterrupt
        return build(entry, *rest)

    monkeypatch.setattr(module, "build_source", failing)
    with pytest.raises(KeyboardInterrupt):
        make(drawn, tmp_path / "cut")
    assert json.loads((tmp_path / "cut" / "dataset.json").read_text())["state"] == "building"
    monkeypatch.setattr(module, "build_source", lambda *args: (calls.append(args[0].item.stem), build(*args))[1])
    resumed = []
    make(drawn, tmp_path / "cut", resumed=lambda: resumed.append(True))
    assert resumed == [True]
    cut, straight = bytes_of(tmp_path / "cut"), bytes_of(tmp_path / "straight")
    assert cut == straight


def test_a_source_that_changed_in_between_is_not_mixed_in(small, tmp_path, monkeypatch):
    from cervseg_jax.curation import prepare as module

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_manifest", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            make(small, tmp_path / "d")
    edit_json(small, lambda document: document["shapes"].pop())
    with pytest.raises(ConfigError, match="was started with different source files"):
        make(small, tmp_path / "d")
    for kind in ("images", "labelme"):
        first(small, kind).unlink()
    with pytest.raises(ConfigError, match="was started with different source files"):
        make(small, tmp_path / "d")
    assert len(make(small, tmp_path / "e").records) == 4


def test_bad_files_are_known_before_anything_is_written(small, tmp_path):
    edit_json(small, lambda document: document["shapes"][0].update(shape_type="cube"))
    with pytest.raises(DataError, match="1 files or entries cannot be used"):
        make(small, tmp_path / "d")
    assert not (tmp_path / "d").exists()


def test_whatever_a_killed_call_leaves_the_next_one_ends_the_same(drawn, tmp_path, monkeypatch):
    from cervseg_jax.curation import prepare as module
    from cervseg_jax.curation import workspace

    def summarized(out):
        return lambda: (out / "stats.txt").write_text("all")

    def make_with(out):
        return prepare(
            drawn, out, Recipe(valid=0.2, test=0.2), progress=QUIET, is_resumed=lambda: None, summarize=summarized(out)
        )

    make_with(tmp_path / "straight")
    expected = bytes_of(tmp_path / "straight")

    def killed(*_args, **_options):
        raise KeyboardInterrupt

    places = {
        "before the first file": (workspace, "write_json"),
        "before the plan": (workspace, "write_text"),
        "before the manifest": (module, "write_manifest"),
        "before the mark": (module, "write_json"),
        "while summarizing": None,
        "before the records go": (workspace.Workspace, "finish"),
    }
    for name, place in places.items():
        out = tmp_path / name.replace(" ", "_")
        with monkeypatch.context() as patch:
            if place is None:
                with pytest.raises(KeyboardInterrupt):
                    prepare(
                        drawn,
                        out,
                        Recipe(valid=0.2, test=0.2),
                        progress=QUIET,
                        is_resumed=lambda: None,
                        summarize=killed,
                    )
            else:
                patch.setattr(*place, killed)
                with pytest.raises(KeyboardInterrupt):
                    make_with(out)
        for folder in (out, out / "train" / "masks"):
            folder.mkdir(parents=True, exist_ok=True)
        machine, number, *_ = temporary_name().removeprefix(TEMPORARY_PREFIX).split("-")
        stale = f"{TEMPORARY_PREFIX}{machine}-{number}-1-2-3.tmp"  # of an earlier process with this number
        left = [out / stale]
        if (out / "dataset.json").exists():
            left.append(out / "train" / "masks" / stale)
        else:
            for folder in (out / "train" / "masks", out / "train"):
                folder.rmdir()
        for path in left:
            path.write_text("half")
        make_with(out)
        assert bytes_of(out) == expected, name
    with monkeypatch.context() as patch:
        patch.setattr(workspace.Workspace, "_clean", killed)
        with pytest.raises(KeyboardInterrupt):
            make_with(tmp_path / "last")
    with pytest.raises(ConfigError, match="already contains this dataset; nothing to do"):
        make_with(tmp_path / "last")
    assert bytes_of(tmp_path / "last") == expected


def test_existing_folders_are_left_alone(drawn, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(ConfigError, match="exists and is not an empty folder"):
        make(drawn, tmp_path / "mine")
    make(drawn, tmp_path / "d")
    before = bytes_of(tmp_path / "d")
    with pytest.raises(ConfigError, match="already contains this dataset"):
        make(drawn, tmp_path / "d")
    with pytest.raises(ConfigError, match="holds another dataset"):
        make(drawn, tmp_path / "d", Recipe(seed=9))
    with pytest.raises(ConfigError, match="holds the source"):
        make(drawn, drawn)
    assert bytes_of(tmp_path / "d") == before


def test_cnseg_folders_by_name(drawn, tmp_path):
    root = tmp_path / "CNSeg" / "clusteredCell"
    names = sorted(path.stem for path in (drawn / "images").iterdir())
    for subset, members in (("difficult", names[:4]), ("normal", names[4:6]), ("test-difficult", names[6:])):
        for folder in (subset, f"{subset}_json"):
            (root / folder).mkdir(parents=True)
        for name in members:
            os.link(drawn / "images" / f"{name}.png", root / subset / f"{name}.png")
            os.link(drawn / "labelme" / f"{name}.json", root / f"{subset}_json" / f"{name}.json")
    os.link(drawn / "images" / f"{names[5]}.png", root / "difficult" / f"{names[4]}.png")  # one stem, two subsets
    os.link(drawn / "labelme" / f"{names[5]}.json", root / "difficult_json" / f"{names[4]}.json")
    items, problems, remarks = collect(tmp_path / "CNSeg")
    assert problems == []
    assert remarks == []
    assert f"difficult_{names[4]}" in {item.stem for item in items}
    make(tmp_path / "CNSeg", tmp_path / "d", Recipe(valid=0.3))
    rows = manifest_of(tmp_path / "d")
    assert {row["stem"] for row in rows if row["split"] == "test"} == set(names[6:])  # the makers' test part
    twins = {row["split"] for row in rows if row["stem"] in (f"difficult_{names[4]}", f"normal_{names[5]}", names[5])}
    assert len(twins) == 1  # the same picture under two names stays in one part
    make(tmp_path / "CNSeg", tmp_path / "all", Recipe(valid=0.3, test=1.0))
    assert {row["split"] for row in manifest_of(tmp_path / "all")} == {"test"}


def test_patchseg_masks_have_no_instances(tmp_path):
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("test", 2)):
        for folder in ("images", "labels"):
            (tmp_path / "P" / f"{split}-{folder}").mkdir(parents=True)
        for index in range(count):
            noise = cv2.GaussianBlur(rng.normal(size=(48, 48)), (0, 0), 4)
            cv2.imwrite(str(tmp_path / "P" / f"{split}-images" / f"{split}{index}.png"), 200 - 90 * (noise > 0.02))
            cv2.imwrite(str(tmp_path / "P" / f"{split}-labels" / f"{split}{index}.png"), 255 * (noise > 0.02))
    made = make(tmp_path / "P", tmp_path / "d", Recipe(valid=0.25, keep_near_duplicates_together=False))
    assert sorted(record.split for record in made.records) == ["test"] * 2 + ["train"] * 3 + ["valid"]
    assert all(record.num_nuclei == -1 for record in made.records)
    assert not list((tmp_path / "d").glob("*/instances"))


def test_groups_folds_and_labels(drawn, tmp_path):
    names = sorted(path.stem for path in (drawn / "images").iterdir())
    lines = [f"{name}.png;patient{index // 2};{'HE' if index % 2 else 'Pap'}" for index, name in enumerate(names)]
    (tmp_path / "g.csv").write_text("\n".join(["image;patient;stain", *lines]))
    recipe = Recipe(groups_csv=tmp_path / "g.csv", test=0.0, folds=4)
    valid = []
    for fold in range(4):
        make(drawn, tmp_path / f"f{fold}", recipe._replace(fold=fold))
        rows = manifest_of(tmp_path / f"f{fold}")
        assert {row["stem"]: row["stain"] for row in rows} == dict(zip(names, ["Pap", "HE"] * 4, strict=True))
        for group in {row["group"] for row in rows}:
            assert len({row["split"] for row in rows if row["group"] == group}) == 1
        valid += [row["stem"] for row in rows if row["split"] == "valid"]
    assert sorted(valid) == names  # each image is valid exactly once
    with pytest.raises(DataError, match="4 sources are too few for 9 folds"):
        make(drawn, tmp_path / "f9", recipe._replace(folds=9))
    with pytest.raises(ConfigError, match="no nucleus has the label 'Nucleus' .did you mean 'nucleus'"):
        make(drawn, tmp_path / "l", Recipe(labels=("Nucleus",), valid=0.2, test=0.2))
    assert not (tmp_path / "l").exists()


def edit_json(folder, change):
    path = sorted((folder / "labelme").iterdir())[0]
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def first(folder, kind="images"):
    return sorted((folder / kind).iterdir())[0]


BROKEN = {
    "zero bytes": (lambda s: first(s).write_bytes(b""), "is empty"),
    "cut image": (lambda s: first(s).write_bytes(first(s).read_bytes()[:500]), "cut short"),
    "text as image": (lambda s: first(s).write_text("hello"), "is not a PNG"),
    "no JSON": (lambda s: first(s, "labelme").write_text("{"), "not valid JSON"),
    "no UTF-8": (lambda s: first(s, "labelme").write_bytes(b"\xff\xff"), "not text in UTF-8 or UTF-16"),
    "no shapes": (lambda s: first(s, "labelme").write_text("{}"), "is neither LabelMe JSON"),
    "other size": (lambda s: edit_json(s, lambda d: d.update(imageHeight=99)), "is for an image of 64x99"),
    "no image": (lambda s: first(s).unlink(), "has no image"),
    "no annotation": (lambda s: first(s, "labelme").unlink(), "has no annotation"),
    "pipe": (lambda s: (first(s).unlink(), os.mkfifo(s / "images" / "synthetic_004_00000.png")), "not a regular file"),
}
BROKEN_ENTRIES = {
    "far away": (lambda s: edit_json(s, lambda d: d["shapes"][0]["points"].append([1e9, 1])), "coordinate beyond"),
    "infinite": (
        lambda s: edit_json(s, lambda d: d["shapes"][0]["points"].append([np.inf, 1])),
        "that is not a number",
    ),
    "NaN": (lambda s: edit_json(s, lambda d: d["shapes"][0]["points"].append([1, np.nan])), "that is not a number"),
    "unknown shape": (lambda s: edit_json(s, lambda d: d["shapes"][0].update(shape_type="cube")), "unknown shape_type"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_stop_the_work_or_are_left_out(small, tmp_path, name):
    breaking, message = BROKEN[name]
    breaking(small)
    with pytest.raises(DataError, match=message):
        make(small, tmp_path / "d")
    made = make(small, tmp_path / "e", Recipe(valid=0.2, test=0.2, on_bad_file="skip"))
    assert len(made.records) == 4
    assert len(made.problems) == 1
    assert message.split()[-1] in made.problems[0]


@pytest.mark.parametrize("name", BROKEN_ENTRIES)
def test_a_broken_entry_stops_the_work_or_costs_that_entry(small, tmp_path, name):
    breaking, message = BROKEN_ENTRIES[name]
    before = make(small, tmp_path / "whole").records
    breaking(small)
    with pytest.raises(DataError, match=message):
        make(small, tmp_path / "d")
    made = make(small, tmp_path / "e", Recipe(valid=0.2, test=0.2, on_bad_file="skip"))
    assert len(made.records) == 5
    assert sum(record.num_nuclei for record in before) == sum(record.num_nuclei for record in made.records) + 1
    (problem,) = made.problems
    assert message in problem
    assert "shape 1" in problem


def test_shapes_outside_and_without_area_are_noted(small, tmp_path):
    def change(document):
        document["shapes"] = [
            {"label": "n", "points": [[-50, -50], [-10, -50], [-10, -10]]},
            {"label": "n", "points": [[5, 5], [9, 9], [5, 5]]},
            {"label": "n", "points": [[5.5, 5], [30, 5], [30, 30]]},
            {"label": "n", "points": [[10, 40], [30, 60], [30, 40], [10, 60.5]]},  # crosses itself
        ]

    edit_json(small, change)
    made = make(small, tmp_path / "d")
    assert sum("lies outside the image" in note for note in made.notes) == 1
    assert sum("covers no pixel" in note for note in made.notes) == 1
    stem = first(small).stem
    assert next(record for record in made.records if record.stem == stem).num_nuclei == 2


def test_strange_names_and_climbing_paths(small, tmp_path):
    secret = tmp_path / "secret.png"
    cv2.imwrite(str(secret), np.zeros((64, 64, 3), np.uint8))
    edit_json(small, lambda document: document.update(imagePath=f"../../{secret.name}"))
    path, annotation = first(small), first(small, "labelme")
    path.rename(path.with_name("ümläut & spa ce [1].png"))
    annotation.rename(annotation.with_name("ümläut & spa ce [1].json"))
    make(small, tmp_path / "d")
    assert list((tmp_path / "d").glob("*/images/ümläut & spa ce *1*.png"))
    assert "secret" not in (tmp_path / "d" / "manifest.csv").read_text()
    write_statistics(tmp_path / "d", tmp_path, progress=QUIET)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (Recipe(group_pattern="("), "--group-pattern: not a regular expression"),
        (Recipe(group_pattern="x"), "--group-pattern: needs one .group"),
        (Recipe(group_pattern="(zzz)"), "does not match --group-pattern"),
        (Recipe(valid=0.9, test=0.9), "too few"),
    ],
)
def test_wrong_settings(small, tmp_path, recipe, message):
    with pytest.raises((ConfigError, DataError), match=message):
        make(small, tmp_path / "d", recipe)


def test_folders_that_are_nothing(tmp_path):
    with pytest.raises(ConfigError, match="no such folder"):
        make(tmp_path / "nowhere", tmp_path / "d")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no supported layout"):
        make(tmp_path / "empty", tmp_path / "d2")


def test_unwritable_target(small, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="cannot be made|not an empty folder"):
        make(small, tmp_path / "file" / "d")


@pytest.fixture(scope="module")
def reference_built(tmp_path_factory):
    """Four drawn sources by the reference's recipe: 80 pairs."""
    folder = tmp_path_factory.mktemp("reference")
    write_scenes(folder / "s", num_images=4, seed=5, size=(256, 256))
    counts = build_reference_dataset(folder / "s", folder / "d", seed=0)
    assert counts == {"train": 64, "valid": 12, "test": 4}
    return folder


def test_audit_of_the_references_recipe(reference_built):
    report = audit(reference_built / "d", progress=QUIET)
    findings = {finding.name: finding for finding in report.findings}
    assert set(findings) == {"lossy masks", "misregistered", "near-duplicates", "leak"}
    assert "80 masks of 80" in findings["lossy masks"].message
    assert "16 of 16 images in valid and test have a sibling in train" in findings["leak"].message
    flagged = findings["misregistered"].files
    assert all("/distorted_0.0" in name for name in flagged)  # nothing else is accused
    assert sum("/distorted_0.03" in name for name in flagged) >= 3
    assert "across splits" in findings["near-duplicates"].message


def test_audit_of_our_recipe_is_clean(reference_built, tmp_path):
    make(reference_built / "s", tmp_path / "d")
    assert audit(tmp_path / "d", progress=QUIET).findings == []


def test_audit_finds_planted_faults(reference_built, tmp_path):
    make(reference_built / "s", tmp_path / "d", Recipe(valid=0.25, test=0.25))
    train = tmp_path / "d" / "train"
    one, two = sorted((train / "masks").iterdir())[:2]
    held = first(tmp_path / "d" / "test")
    mask = label_map(one)
    cv2.imwrite(str(one), np.roll(mask, (9, 9), (0, 1)))
    cv2.imwrite(str(two), np.ascontiguousarray(label_map(two)[:, ::-1]))
    (train / "images" / "copy.png").write_bytes(held.read_bytes())
    (train / "masks" / "copy.png").write_bytes((held.parents[1] / "masks" / held.name).read_bytes())
    (train / "images" / "alone.png").write_bytes(held.read_bytes())
    report = audit(tmp_path / "d", progress=QUIET)
    found = [(finding.name, finding.message) for finding in report.findings]
    messages = " | ".join(message for _, message in found)
    assert {"unpaired", "copies", "misregistered"} <= {name for name, _ in found}
    assert [message for name, message in found if name == "misregistered"] == [
        "1 masks of 5 seem to be of another image",  # on so small an image, a shift by 9 px looks like that
        "1 masks of 5 would fit mirrored",
    ]
    assert "images occur more than once, 1 of them across splits" in messages
    assert json.loads(json.dumps(report.to_json()))["pairs"]["train"] == 3


def test_audit_of_real_images_finds_the_source_that_occurs_twice():
    folder = SHARED / "data" / "cnseg_clustered"
    if not folder.is_dir():
        pytest.skip("the real images are not on this machine")
    findings = {finding.name: finding for finding in audit(folder, progress=QUIET).findings}
    assert findings["siblings"].files == ["10005: images/10005.jpg, images/barrdistorted_103_0.3_0.3_10005.jpg"]
    assert any("10005.jpg" in name for name in findings["near-duplicates"].files)
    assert "16 masks of 16" in findings["lossy masks"].message


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("hflipped_10001", "10001"),
        ("rotated_270_10001", "10001"),
        ("deformed_alpha_1300_sigmoid_8.0_10001", "10001"),
        ("distorted_0.02_rsigma0.5_sigma40_10001", "10001"),
        ("shrinked_0_8_10001", "10001"),
        ("pincdistorted_105_0.3_-0.3_10001", "10001"),
        ("slide_4_17", "slide_4_17"),
        ("rotated_", "rotated_"),
    ],
)
def test_names_of_variants_lead_to_their_source(name, source):
    assert source_of(name) == source


def test_registration_measures_a_shift():
    scene = draw_scene(shape=(320, 320), seed=1, index=2)
    mask = draw_instances(scene.outlines, shape=(320, 320)) > 0
    assert registration(scene.image, mask).displacement < 0.006
    shifted = registration(scene.image, np.roll(mask, (0, 8), (0, 1)))
    assert shifted.drift == pytest.approx(8 / 320, rel=0.2)
    assert np.isnan(registration(scene.image, mask * 0).agreement)


def test_hashes_survive_recompression_and_turns_and_tell_scenes_apart():
    scenes = [draw_scene(shape=(160, 160), seed=8, index=index).image for index in range(12)]
    _, packed = cv2.imencode(".jpg", scenes[0], [cv2.IMWRITE_JPEG_QUALITY, 60])
    variants = [
        cv2.imdecode(packed, cv2.IMREAD_COLOR),
        np.rot90(scenes[1]),
        scenes[2][:, ::-1],
        cv2.convertScaleAbs(scenes[3], alpha=0.9, beta=12),
        cv2.resize(scenes[4], (300, 300)),
    ]
    hashes = np.stack([perceptual_hash(np.ascontiguousarray(image)) for image in [*scenes, *variants]])
    assert near_pairs(hashes) == [(index, 12 + index) for index in range(5)]


def test_statistics_count_what_is_there(drawn, tmp_path):
    make(drawn, tmp_path / "d")
    summary = write_statistics(tmp_path / "d", tmp_path, progress=QUIET)
    rows = manifest_of(tmp_path / "d")
    for split, facts in summary.items():
        members = [row for row in rows if row["split"] == split]
        assert facts["images"] == len(members)
        assert facts["nuclei"] == sum(int(row["num_nuclei"]) for row in members)
        mean = np.mean([float(row["foreground"]) for row in members])
        assert facts["foreground_mean"] == pytest.approx(mean, abs=1e-5)
        assert 0.3 < facts["touching_share"] <= 1
    for name in ("stats.json", "d_statistics.png", "train_images_sample.png", "train_masks_sample.png"):
        assert (tmp_path / name).stat().st_size > 500


class Reader(HTMLParser):
    """Collects the text of a page, and whatever a browser would fetch."""

    def __init__(self, text):
        super().__init__()
        self.words, self.fetched = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        addresses = [value for name, value in attrs if name in ("src", "href", "srcset")]
        self.fetched += [address for address in addresses if not address.startswith("#")]  # places in the page itself

    def handle_data(self, data):
        self.words.append(data)


def test_the_overview_shows_the_dataset_without_a_network(drawn, tmp_path):
    from tests.helpers import run

    out = tmp_path / "nuclei <b> & so on"
    assert run("prepare", drawn, "--out", out, "--size", 64, 64)[0] == 0
    assert run("audit", out)[0] == 0
    assert run("stats", out)[0] == 0
    text = (out / "overview.html").read_text()
    page = Reader(text)
    shown = " ".join(page.words)
    assert "nuclei <b> & so on" in shown
    assert "Audited; nothing was found." in shown
    assert "group_pattern" in shown
    for row in manifest_of(out):
        assert row["split"] in shown
    assert len(page.fetched) == 3
    assert all(source.startswith("data:image/png;base64,") for source in page.fetched)
    assert "http" not in text


def test_outlines_through_pixel_centers_are_told_and_restored(tmp_path):
    """Most of one file's outlines come from `cv2.findContours`, those of the other were drawn by hand."""
    truth = np.zeros((2, 64, 64), np.uint8)
    cv2.circle(truth[0], (20, 20), 9, 1, -1)
    cv2.ellipse(truth[0], (44, 40), (12, 7), 30, 0, 360, 1, -1)
    drawn = np.array([[5.2, 45.2], [20.2, 45.2], [20.2, 60.2], [5.2, 60.2]])
    contours, _ = cv2.findContours(truth[0], cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    truth[:, 45:60, 5:20] = 1  # pixels whose centers are inside
    (tmp_path / "source").mkdir()
    for name, rings in (("traced", [*(contour[:, 0] for contour in contours), drawn]), ("by_hand", [drawn])):
        cv2.imwrite(str(tmp_path / "source" / f"{name}.png"), np.full((64, 64, 3), 200, np.uint8))
        shapes = [{"label": "nucleus", "shape_type": "polygon", "points": ring.tolist()} for ring in rings]
        document = {"shapes": shapes, "imagePath": f"{name}.png", "imageHeight": 64, "imageWidth": 64}
        (tmp_path / "source" / f"{name}.json").write_text(json.dumps(document))
    for outlines in ("auto", "exact"):
        recipe = Recipe(outlines=outlines, valid=0.0, test=0.0, keep_near_duplicates_together=False)
        notes = make(tmp_path / "source", tmp_path / outlines, recipe).notes
        assert len([note for note in notes if "half pixel" in note]) == 1
    masks = {
        name: cv2.imread(str(tmp_path / name / "train" / "masks" / "traced.png"), cv2.IMREAD_UNCHANGED) > 0
        for name in ("auto", "exact")
    }
    np.testing.assert_array_equal(masks["auto"], truth[0] > 0)
    assert masks["exact"].sum() < 0.95 * truth[0].sum()
    by_hand = cv2.imread(str(tmp_path / "auto" / "train" / "masks" / "by_hand.png"), cv2.IMREAD_UNCHANGED) > 0
    np.testing.assert_array_equal(by_hand, truth[1] > 0)


def test_commands(drawn, tmp_path):
    from tests.helpers import refused, run

    code, stdout, stderr = run("prepare", drawn, "--out", tmp_path / "d", "--size", 64, 64, "--valid", 0.2)
    assert code == 0, stderr
    assert "next: cervseg-jax train" in stdout
    code, stdout, stderr = run("audit", tmp_path / "d")
    assert code == 0, stdout + stderr
    assert "ok: nothing found" in stdout
    assert run("stats", tmp_path / "d", "--out", tmp_path / "stats")[0] == 0
    assert "`cervseg-jax prepare" in refused(2, "eval", "pap", "--data", drawn)
    code, stdout, stderr = run("prepare", drawn, "--out", tmp_path / "t", "--test", 1)
    assert code == 0, stderr
    assert {row["split"] for row in manifest_of(tmp_path / "t")} == {"test"}
    assert f"next: cervseg-jax eval pap --data {tmp_path / 't'}" in stdout
    assert "all for testing" in refused(2, "train", "--data", tmp_path / "t", "--run-dir", tmp_path / "run")
    assert "must be between 0 and 0.9" in refused(2, "prepare", drawn, "--out", tmp_path / "n", "--test", 0.95)
    code, _, stderr = run("prepare", drawn, "--out", tmp_path / "r", "--style", "reference", "--quiet")
    assert code == 0
    assert "splits share sources" in stderr
    (tmp_path / "d" / "train" / "images" / "alone.png").write_bytes(first(drawn).read_bytes())
    assert "1 findings" in refused(1, "audit", tmp_path / "d")
    assert "already contains this dataset" in refused(
        2, "prepare", drawn, "--out", tmp_path / "d", "--size", 64, 64, "--valid", 0.2
    )
    assert "--fold: needs at least 2 --folds" in refused(
        2, "prepare", drawn, "--out", tmp_path / "x", "--folds", 3, "--fold", 3
    )


def test_a_full_disk_ends_in_one_message(small, tmp_path):
    from tests.helpers import run_process

    limit = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000)); "
    )
    code, _, stderr = run_process("prepare", small, "--out", tmp_path / "d", prelude=limit)
    assert code == 2
    assert stderr.count("error: ") == 1
    code, stdout, stderr = run_process("prepare", small, "--out", tmp_path / "d")
    assert code == 0, stderr
    assert "continuing an interrupted call" in stdout


def test_joined_look_alikes_are_named_and_can_be_kept_apart(tmp_path, rng):
    from tests.helpers import refused, run

    for folder in ("images", "masks"):
        (tmp_path / "in" / folder).mkdir(parents=True)
    for index in range(12):
        image = np.clip(225 + rng.normal(0, 4, (128, 128, 3)), 0, 255).astype(np.uint8)
        mask = np.zeros((128, 128), np.uint8)
        center, radius = (64 + int(rng.integers(-6, 7)), 64 + int(rng.integers(-6, 7))), int(rng.integers(9, 24))
        cv2.circle(image, center, radius, (90, 90, 90), -1)
        cv2.circle(mask, center, radius, 255, -1)
        cv2.imwrite(str(tmp_path / "in" / "images" / f"i{index}.png"), image)
        cv2.imwrite(str(tmp_path / "in" / "masks" / f"i{index}.png"), mask)
    message = refused(3, "prepare", tmp_path / "in", "--out", tmp_path / "out")
    assert "look alike and count as" in message
    assert "--near-duplicates apart" in message
    apart = ("--near-duplicates", "apart", "--quiet")
    code, _, stderr = run("prepare", tmp_path / "in", "--out", tmp_path / "out", *apart)
    assert code == 0, stderr
    assert len(list((tmp_path / "out").glob("*/images/*.png"))) == 12


def recompressed(image, quality=70):
    _, packed = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return cv2.imdecode(packed, cv2.IMREAD_COLOR)


@pytest.mark.parametrize(
    ("make_copy", "num_joined"),
    [
        (recompressed, 3),
        (lambda image: image[:, ::-1], 3),
        (lambda image: np.rot90(image), 3),
        (lambda image: cv2.convertScaleAbs(image, alpha=0.9, beta=12), 3),
        (lambda image: np.roll(image, image.shape[1] // 2, axis=1), 0),
    ],
    ids=["recompressed", "mirrored", "turned", "brighter", "of another place"],
)
def test_copies_stay_in_one_split_unless_they_are_kept_apart(tmp_path, make_copy, num_joined):
    """Three images of nine have a copy under another name."""
    for folder in ("images", "masks"):
        (tmp_path / "in" / folder).mkdir(parents=True)
    for index in range(9):
        scene = draw_scene(shape=(160, 160), seed=8, index=index)
        mask = (draw_instances(scene.outlines, shape=(160, 160)) > 0).astype(np.uint8) * 255
        pairs = [(f"i{index}", scene.image, mask)]
        if index < 3:
            pairs.append((f"copy{index}", make_copy(scene.image), make_copy(mask) > 127))
        for name, image, marked in pairs:
            cv2.imwrite(str(tmp_path / "in" / "images" / f"{name}.png"), np.ascontiguousarray(image))
            cv2.imwrite(str(tmp_path / "in" / "masks" / f"{name}.png"), np.uint8(255) * (marked > 0))
    for is_joined in (True, False):
        recipe = Recipe(valid=0.2, test=0.2, keep_near_duplicates_together=is_joined)
        made = make(tmp_path / "in", tmp_path / f"out-{is_joined}", recipe)
        groups = {record.stem: record.group for record in made.records}
        splits = {record.stem: record.split for record in made.records}
        joined = [index for index in range(3) if groups[f"i{index}"] == groups[f"copy{index}"]]
        assert len(joined) == (num_joined if is_joined else 0)
        assert len(set(groups.values())) == 12 - len(joined)
        assert all(splits[f"i{index}"] == splits[f"copy{index}"] for index in joined)


def test_a_damaged_description_of_a_dataset_is_one_message(small, tmp_path):
    make(small, tmp_path / "d")
    (tmp_path / "d" / "dataset.json").write_text("[]")
    with pytest.raises(DataError, match=r"dataset\.json: is damaged"):
        write_statistics(tmp_path / "d", tmp_path / "s", progress=Reporter(quiet=True).progress)
    with pytest.raises(ConfigError, match=r"dataset\.json: is damaged: .*; choose another folder"):
        make(small, tmp_path / "d")
