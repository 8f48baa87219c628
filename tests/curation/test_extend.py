"""Adding annotated images to the training split: what is held out stays held out, and a kill changes nothing."""

import json
import os
import shutil

import cv2
import numpy as np
import pytest

from cervseg_jax.annotations.decisions import read_decisions
from cervseg_jax.annotations.preannotation import Suggestion, outlines_digest, write_suggestions
from cervseg_jax.annotations.reader import read_annotation
from cervseg_jax.console import Reporter
from cervseg_jax.curation import extend
from cervseg_jax.curation.dataset_folder import write_scenes
from cervseg_jax.curation.extend import add_to_dataset
from cervseg_jax.curation.geometry import Geometry
from cervseg_jax.curation.prepare import prepare
from cervseg_jax.curation.recipe import Recipe
from cervseg_jax.curation.reviewed import Review
from cervseg_jax.errors import ConfigError, DataError
from cervseg_jax.files import sha256_of
from tests.helpers import refused, rows_of, run

QUIET = Reporter(quiet=True).progress


def add(source, dataset, recipe=None, resumed=lambda: None, **review):
    return add_to_dataset(
        source, dataset, recipe or Recipe(), review=Review(**review), progress=QUIET, is_resumed=resumed
    )


def flat(source, out, names=None):
    """Copies a drawn folder with images and annotations side by side, as `suggest` writes them."""
    out.mkdir()
    for path in sorted((source / "images").iterdir()):
        if names is None or path.stem in names:
            shutil.copy(path, out)
            shutil.copy(source / "labelme" / f"{path.stem}.json", out)
    return out


def as_suggested(folder, source=None, corner=(0, 0)):
    """Lists the files of a folder as suggestions that nobody has looked at."""
    rows = []
    for order, path in enumerate(sorted(folder.glob("*.json")), start=1):
        image = path.with_suffix(".png")
        digest = outlines_digest(read_annotation(path.read_bytes(), source=path))
        origin = source or image
        height, width = cv2.imread(str(image)).shape[:2]
        rows.append(
            Suggestion(
                order, image.name, str(origin), sha256_of(origin.read_bytes()), *corner, height, width, height, width,
                0, 0.5, 1.0, 0.5, "", digest,
            )
        )  # fmt: skip
    write_suggestions(folder, rows)


def tick(path):
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | {"flags": {"checked": True}}))


def files_of(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.parent != folder
    }


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Two drawn folders of 96x80 pixels: the first dataset, and four new images."""
    root = tmp_path_factory.mktemp("drawn")
    write_scenes(root / "first", num_images=8, seed=3, size=(96, 80))
    write_scenes(root / "more", num_images=4, seed=4, size=(96, 80))
    for name in ("first", "more"):
        shutil.rmtree(root / name / "instances")
    recipe = Recipe(Geometry(size=(64, 48)), valid=0.25, test=0.25)
    prepare(root / "first", root / "dataset", recipe, progress=QUIET, is_resumed=lambda: None)
    return root


@pytest.fixture
def dataset(drawn, tmp_path):
    return shutil.copytree(drawn / "dataset", tmp_path / "dataset")


def stems_in(dataset, split):
    return [row["stem"] for row in rows_of(dataset / "manifest.csv") if row["split"] == split]


def test_new_images_join_train_and_nothing_else_changes(drawn, dataset, tmp_path):
    before, listed = files_of(dataset), (dataset / "manifest.csv").read_bytes()
    added = add(flat(drawn / "more", tmp_path / "todo"), dataset)
    assert [record.stem for record in added.records] == [f"synthetic_004_0000{index}" for index in range(4)]
    after = files_of(dataset)
    assert {name: after[name] for name in before} == before
    assert (dataset / "manifest.csv").read_bytes().startswith(listed)
    rows = rows_of(dataset / "manifest.csv")[-4:]
    assert all(row["split"] == "train" and row["fold"] == "-1" and row["height"] == "64" for row in rows)
    assert all(int(row["num_nuclei"]) > 0 for row in rows)
    for record in added.records:  # in the size of the dataset, with all that belongs to an image
        for kind in ("images", "masks", "instances"):
            assert cv2.imread(str(dataset / "train" / kind / f"{record.stem}.png")).shape[:2] == (64, 48)
        assert (dataset / "train" / "labelme" / f"{record.stem}.json").is_file()
    notes = json.loads((dataset / "dataset.json").read_text())
    assert notes["images"] == {"test": 2, "train": 8, "valid": 2}
    assert notes["additions"] == [{"source": str(tmp_path / "todo"), "images": 4}]
    again = add(tmp_path / "todo", dataset)
    assert (again.records, len(again.known)) == ([], 4)
    assert files_of(dataset) == after


def test_only_what_a_person_has_looked_at_is_taken(drawn, dataset, tmp_path):
    todo = flat(drawn / "more", tmp_path / "todo")
    as_suggested(todo)
    added = add(todo, dataset)
    assert added.records == []
    assert "nobody has looked at the pre-annotations of 4 images" in added.notes[0]
    tick(todo / "synthetic_004_00001.json")
    document = json.loads((todo / "synthetic_004_00002.json").read_text())
    document["shapes"].pop()
    (todo / "synthetic_004_00002.json").write_text(json.dumps(document))
    (todo / "synthetic_004_00003.json").unlink()  # not wanted
    added = add(todo, dataset)
    assert [record.stem for record in added.records] == ["synthetic_004_00001", "synthetic_004_00002"]
    assert added.notes[0].startswith("nobody has looked at the pre-annotations of 1 images")
    assert [record.stem for record in add(todo, dataset, accept_unchanged=True).records] == ["synthetic_004_00000"]


def test_decisions_leave_out_images_and_nuclei_and_accept_others(drawn, dataset, tmp_path):
    todo = flat(drawn / "more", tmp_path / "todo")
    as_suggested(todo)
    document = json.loads((todo / "synthetic_004_00001.json").read_text())
    points = np.array(document["shapes"][-1]["points"]).mean(axis=0)
    content = [
        {"image": "synthetic_004_00000", "decision": "rejected", "nuclei": []},
        {
            "image": "synthetic_004_00001",
            "decision": "accepted",
            "nuclei": [{"label": 1, "x": points[0], "y": points[1], "decision": "rejected"}],
        },
    ]
    path = tmp_path / "decisions.json"
    path.write_text(json.dumps({"format": "cervseg-jax decisions", "images": content}))
    added = add(todo, dataset, decisions=read_decisions(path))
    (record,) = added.records
    assert record.stem == "synthetic_004_00001"
    assert record.num_nuclei < len(document["shapes"])
    instances = cv2.imread(str(dataset / "train" / "instances" / "synthetic_004_00001.png"), cv2.IMREAD_UNCHANGED)
    column, row = (points * (48 / 80, 64 / 96)).astype(int)
    kept = json.loads((dataset / "train" / "labelme" / "synthetic_004_00001.json").read_text())["shapes"]
    assert len(kept) == len(document["shapes"]) - sum(
        cv2.pointPolygonTest(np.array(shape["points"], np.float32), points.tolist(), False) > 0
        for shape in document["shapes"]
    )
    assert instances[row, column] == 0
    assert "1 images rejected in review are left out: synthetic_004_00000" in added.notes


def test_what_the_dataset_holds_out_is_refused_by_name(drawn, dataset, tmp_path):
    valid, test = stems_in(dataset, "valid")[0], stems_in(dataset, "test")[0]
    todo = flat(drawn / "more", tmp_path / "todo", ["synthetic_004_00000"])
    first = drawn / "first" / "images"
    annotation = (todo / "synthetic_004_00000.json").read_text()
    # The very file; another exposure of it, mirrored; and a crop of it.
    shutil.copy(first / f"{valid}.png", todo / "same.png")
    bright = cv2.convertScaleAbs(cv2.imread(str(first / f"{test}.png"))[:, ::-1], alpha=0.97, beta=4)
    cv2.imwrite(str(todo / "bright.png"), bright)
    for name in ("same", "bright"):
        (todo / f"{name}.json").write_text(annotation)
    added = add(todo, dataset)
    assert [record.stem for record in added.records] == ["synthetic_004_00000"]
    assert len(added.refused) == 2
    assert any(f"same.png: is valid/{valid} of the dataset; it is not added" in text for text in added.refused)
    assert any(f"bright.png: looks like test/{test} of the dataset" in text for text in added.refused)
    crops = tmp_path / "crops"
    crops.mkdir()
    name = f"{valid}_y40_x30"
    cv2.imwrite(str(crops / f"{name}.png"), cv2.imread(str(first / f"{valid}.png"))[40:90, 30:80])
    shape = {"label": "nucleus", "points": [[5, 5], [20, 5], [20, 20]], "group_id": None, "shape_type": "polygon"}
    (crops / f"{name}.json").write_text(json.dumps({"imagePath": f"{name}.png", "shapes": [shape]}))
    as_suggested(crops, source=first / f"{valid}.png", corner=(40, 30))
    added = add(crops, dataset, accept_unchanged=True)
    assert added.records == []
    assert f"{name}.png: is valid/{valid} of the dataset" in added.refused[0]


def test_a_pattern_of_groups_keeps_a_patient_on_one_side(drawn, tmp_path):
    folder = tmp_path / "patients"
    (folder / "images").mkdir(parents=True)
    (folder / "labelme").mkdir()
    for index, path in enumerate(sorted((drawn / "first" / "images").iterdir())):
        name = f"p{index // 2}_{index}"
        shutil.copy(path, folder / "images" / f"{name}.png")
        shutil.copy(drawn / "first" / "labelme" / f"{path.stem}.json", folder / "labelme" / f"{name}.json")
    recipe = Recipe(valid=0.25, test=0.25, group_pattern="^(p[0-9]+)_")
    prepare(folder, tmp_path / "dataset", recipe, progress=QUIET, is_resumed=lambda: None)
    (held_out,) = {row["group"] for row in rows_of(tmp_path / "dataset" / "manifest.csv") if row["split"] == "test"}
    todo = flat(drawn / "more", tmp_path / "todo", ["synthetic_004_00000", "synthetic_004_00001"])
    for number, name in enumerate((f"{held_out}_77", "p99_1")):
        for ending in ("png", "json"):
            (todo / f"synthetic_004_0000{number}.{ending}").rename(todo / f"{name}.{ending}")
    added = add(todo, tmp_path / "dataset")
    assert [record.stem for record in added.records] == ["p99_1"]
    assert f"is by its name of the source {held_out!r}, which the dataset has in test" in added.refused[0]


def test_a_name_that_is_taken_gets_another_one(drawn, dataset, tmp_path):
    todo = flat(drawn / "more", tmp_path / "todo", ["synthetic_004_00000"])
    taken = stems_in(dataset, "train")[0]
    for ending in ("png", "json"):
        (todo / f"synthetic_004_00000.{ending}").rename(todo / f"{taken}.{ending}")
    (record,) = add(todo, dataset).records
    assert record.stem == f"{taken}_{record.source_sha256[:8]}"
    assert (dataset / "train" / "images" / f"{record.stem}.png").is_file()


@pytest.mark.parametrize("kill_after", [0, 5, 15])
def test_a_killed_call_is_finished_by_the_next_one(drawn, dataset, tmp_path, monkeypatch, kill_after):
    todo = flat(drawn / "more", tmp_path / "todo")
    whole = shutil.copytree(dataset, tmp_path / "whole")
    add(todo, whole)
    moves = []

    def rename(old, new):
        if len(moves) == kill_after:
            raise KeyboardInterrupt
        moves.append(new)
        os.replace(old, new)

    monkeypatch.setattr(extend.os, "rename", rename)
    with pytest.raises(KeyboardInterrupt):
        add(todo, dataset)
    train = dataset / "train"
    for path in (train / "images").iterdir():  # an image that is seen has its mask and labels
        assert (train / "masks" / path.name).is_file()
        assert (train / "instances" / path.name).is_file()
    monkeypatch.undo()
    resumed = []
    assert add(todo, dataset, resumed=lambda: resumed.append(1)).records == []
    assert resumed == [1]
    assert files_of(dataset) == files_of(whole)
    assert (dataset / "manifest.csv").read_bytes() == (whole / "manifest.csv").read_bytes()


def test_a_call_that_was_killed_before_its_plan_leaves_nothing(drawn, dataset, tmp_path, monkeypatch):
    todo, before = flat(drawn / "more", tmp_path / "todo"), files_of(dataset)

    def write_json(path, value):
        raise KeyboardInterrupt

    monkeypatch.setattr(extend, "write_json", write_json)
    with pytest.raises(KeyboardInterrupt):
        add(todo, dataset)
    monkeypatch.undo()
    assert {name: content for name, content in files_of(dataset).items() if ".adding" not in name} == before
    assert len(add(todo, dataset).records) == 4
    assert not (dataset / ".adding").exists()


def test_bad_files_stop_it_before_anything_is_added(drawn, dataset, tmp_path):
    todo, before = flat(drawn / "more", tmp_path / "todo"), files_of(dataset)
    (todo / "synthetic_004_00002.json").write_text("{")
    with pytest.raises(DataError, match="1 files or entries cannot be used, and nothing was added"):
        add(todo, dataset)
    assert files_of(dataset) == before
    added = add(todo, dataset, Recipe(on_bad_file="skip"))
    assert (len(added.records), len(added.problems)) == (3, 1)


def test_two_calls_at_once_are_refused(drawn, dataset):
    with extend._locked(dataset), pytest.raises(ConfigError, match="another process is adding images to it"):
        add(drawn / "more", dataset)


def test_other_folders_are_refused(drawn, tmp_path):
    (tmp_path / "plain").mkdir()
    with pytest.raises(ConfigError, match="is no dataset of `cervseg-jax prepare`"):
        add(drawn / "more", tmp_path / "plain")
    unfinished = shutil.copytree(drawn / "dataset", tmp_path / "unfinished")
    notes = json.loads((unfinished / "dataset.json").read_text())
    (unfinished / "dataset.json").write_text(json.dumps(notes | {"state": "building"}))
    with pytest.raises(ConfigError, match="is no finished dataset"):
        add(drawn / "more", unfinished)


def test_crops_of_one_image_stay_together_in_a_new_dataset(drawn, tmp_path):
    todo = flat(drawn / "more", tmp_path / "todo")
    write_scenes(tmp_path / "third", num_images=2, seed=9, size=(96, 80))
    source = tmp_path / "third" / "images" / "synthetic_009_00000.png"
    as_suggested(todo, source=source)
    for name in ("synthetic_009_00000", "synthetic_009_00001"):
        shutil.copy(tmp_path / "third" / "images" / f"{name}.png", todo)
        shutil.copy(tmp_path / "third" / "labelme" / f"{name}.json", todo)
    made = prepare(
        todo, tmp_path / "out", Recipe(valid=0.5, test=0.0), progress=QUIET, is_resumed=lambda: None,
        review=Review(accept_unchanged=True),
    )  # fmt: skip
    assert not any(".csv" in note for note in made.notes)
    splits = {record.split for record in made.records if record.stem.startswith("synthetic_004")}
    assert len(splits) == 1
    assert {record.group for record in made.records} == {"synthetic_009_00000", "synthetic_009_00001"}


def test_the_command_says_what_it_did(drawn, dataset, tmp_path):
    todo = flat(drawn / "more", tmp_path / "todo")
    valid = stems_in(dataset, "valid")[0]
    for folder, ending in (("images", "png"), ("labelme", "json")):
        shutil.copy(drawn / "first" / folder / f"{valid}.{ending}", todo)
    code, stdout, stderr = run("prepare", todo, "--add-to", dataset)
    assert code == 1
    assert "added to train: 4 images, " in stdout
    assert f"{valid}.png: is valid/{valid} of the dataset; it is not added" in stderr
    assert "1 images were refused" in stderr
    assert "in train already, and unchanged there: 4 images" in run("prepare", todo, "--add-to", dataset)[1]
    assert "--add-to: takes --padding, --size and --tile from the dataset" in refused(
        2, "prepare", todo, "--add-to", dataset, "--size", 64, 64
    )
    assert "either --out, for a new dataset, or --add-to" in refused(2, "prepare", todo)
    assert "--style: reference makes a new dataset" in refused(
        2, "prepare", todo, "--add-to", dataset, "--style", "reference"
    )
