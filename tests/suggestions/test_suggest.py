"""`cervseg-jax suggest` from a run to a folder, and around the loop once."""

import json
import shutil

import cv2
import numpy as np
import pytest

from cervseg_jax.annotations.preannotation import read_suggestions
from tests.helpers import draw_discs, refused, rows_of, run

OPTIONS = ("--count", 9, "--crop-px", 64, "--set", "infer.threshold=0.3")


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """Six images of discs, one of them twice, a large one, and a file that is no image."""
    folder = tmp_path_factory.mktemp("pool")
    draw_discs(folder, count=5, size=(48, 40), seed=70)
    images = folder / "images"
    for path in images.iterdir():
        path.rename(images / path.name.replace("disc", "new"))
    first = cv2.imread(str(images / "new_000.png"))
    cv2.imwrite(str(images / "copy.jpg"), first[:, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
    draw_discs(folder / "large", count=1, size=(140, 210), seed=71)
    shutil.copy(folder / "large" / "images" / "disc_000.png", images / "large.png")
    (images / "broken.png").write_bytes(b"no image")
    return images


@pytest.fixture(scope="module")
def suggested(finished, pool, tmp_path_factory):
    """The folder, and what the command printed."""
    _, folder, _ = finished
    shutil.copy(folder.parent / "data" / "train" / "images" / "disc_001.png", pool / "trained.png")
    out = tmp_path_factory.mktemp("suggested") / "todo"
    code, stdout, stderr = run("suggest", folder, "--images", pool, "--out", out, *OPTIONS)
    return out, code, stdout, stderr


def test_images_are_written_with_what_is_needed_to_correct_them(pool, suggested):
    out, code, stdout, stderr = suggested
    assert code == 1  # a file of the pool cannot be used
    assert "broken.png: is not a PNG" in stderr
    assert "1 files of the pool cannot be used" in stderr
    rows = rows_of(out / "suggestions.csv")
    assert [row["order"] for row in rows] == list("123456789")
    for row in rows:
        picture = cv2.imread(str(out / row["image"]))
        document = json.loads((out / row["image"]).with_suffix(".json").read_text())
        assert (out / document["imagePath"]).is_file()
        assert [document["imageHeight"], document["imageWidth"]] == list(picture.shape[:2])
        assert len(document["shapes"]) == int(row["num_nuclei"])
        top, left, height, width = (int(row[name]) for name in ("top", "left", "height", "width"))
        source = cv2.imread(row["source"])
        assert np.array_equal(picture, source[top : top + height, left : left + width])
        assert row["reason"].startswith("uncertain: ")
        assert float(row["score"]) == pytest.approx(float(row["uncertainty"]) * float(row["distance"]), abs=2e-6)
        assert row["image"] in stdout


def test_copies_and_trained_images_are_left_out_and_large_ones_are_cut(suggested):
    out, _, stdout, _ = suggested
    assert "left out, in the dataset already (train): 1 (trained)" in stdout
    assert "left out, near copies of another image of the pool: 1 " in stdout
    names = [row["image"] for row in rows_of(out / "suggestions.csv")]
    assert not {"trained.png", "large.png"} & set(names)
    assert not {"copy.jpg", "new_000.png"} <= set(names)
    crops = [name for name in names if name.startswith("large_y")]
    assert crops
    assert {cv2.imread(str(out / name)).shape for name in crops} == {(64, 64, 3)}


def test_the_same_call_gives_the_same_files_and_keeps_corrections(finished, pool, suggested, tmp_path):
    _, folder, _ = finished
    out = shutil.copytree(suggested[0], tmp_path / "todo")
    first = next(row["image"] for row in rows_of(out / "suggestions.csv") if row["num_nuclei"] != "0")
    path = (out / first).with_suffix(".json")
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | {"shapes": document["shapes"][1:]}))
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    code, _, stderr = run("suggest", folder, "--images", pool, "--out", out, *OPTIONS)
    assert code == 1
    assert f"1 annotations were changed by hand and are kept as they are: {path.name}" in stderr
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


def test_decisions_choose_and_reject(finished, suggested, pool, tmp_path):
    _, folder, _ = finished
    rows = rows_of(suggested[0] / "suggestions.csv")
    whole = [row for row in rows if row["top"] == row["left"] == "0" and "new" in row["image"]]
    last, other = whole[-1]["image"], whole[0]["image"]
    shape = json.loads((suggested[0] / last).with_suffix(".json").read_text())["shapes"][0]
    inside = cv2.fillPoly(np.zeros((48, 40), np.uint8), [np.array(shape["points"]).astype(np.int32)], 1)
    row, column = np.unravel_index(cv2.distanceTransform(inside, cv2.DIST_L2, 5).argmax(), inside.shape)
    content = [
        {"image": "x", "file": str(pool / last), "decision": "flagged",
         "nuclei": [{"label": 1, "x": column + 0.5, "y": row + 0.5, "decision": "rejected"}]},
        {"image": "y", "file": str(pool / other), "decision": "rejected", "nuclei": []},
    ]  # fmt: skip
    (tmp_path / "d.json").write_text(json.dumps({"format": "cervseg-jax decisions", "images": content}))
    options = ("--out", tmp_path / "todo", *OPTIONS, "--decisions", tmp_path / "d.json")
    code, stdout, _ = run("suggest", folder, "--images", pool, *options)
    assert code == 1
    assert f"left out, rejected in review: 1 ({other})" in stdout
    suggestions = list(read_suggestions(tmp_path / "todo").values())
    assert suggestions[0].image == last
    assert suggestions[0].reason.startswith("flagged in review; ")
    assert suggestions[0].num_nuclei == int(whole[-1]["num_nuclei"]) - 1
    assert other not in [entry.image for entry in suggestions]


def test_mistakes_are_one_message(finished, pool, tmp_path):
    _, folder, _ = finished
    draw_discs(tmp_path / "in", count=1, seed=3)
    images = tmp_path / "in" / "images"
    (images / "disc_000.png").rename(images / "new.png")
    assert "is a folder of input images" in refused(2, "suggest", folder, "--images", images, "--out", images)
    assert "is not an empty folder" in refused(2, "suggest", folder, "--images", images, "--out", tmp_path / "in")
    assert "--decisions: no such file" in refused(
        2, "suggest", folder, "--images", images, "--out", tmp_path / "o", "--decisions", tmp_path / "none.json"
    )
    code, stdout, stderr = run("suggest", folder, "--images", images, "--out", tmp_path / "o", "--count", 5)
    assert (code, "only 1 of 5 images" in stderr) == (0, True)
    assert "next: labelme" in stdout


@pytest.mark.parametrize("with_instances", [False, True])
def test_scores_leave_out_what_review_rejects(finished, tmp_path, with_instances):
    _, folder, _ = finished
    copy = shutil.copytree(folder, tmp_path / "run", ignore=shutil.ignore_patterns("eval", "run-*"))
    test = shutil.copytree(folder.parent / "data" / "test", tmp_path / "data" / "test")
    masks = {path.stem: cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in (test / "masks").iterdir()}
    labels = {stem: cv2.connectedComponents(mask, connectivity=4)[1] for stem, mask in masks.items()}
    if with_instances:
        (test / "instances").mkdir()
        for stem, values in labels.items():
            cv2.imwrite(str(test / "instances" / f"{stem}.png"), values.astype(np.uint16))
    row, column = np.argwhere(labels["disc_002"] == 1)[0].tolist()
    mark = {"label": 1, "x": column + 0.5, "y": row + 0.5, "decision": "rejected"}
    content = [
        {"image": "disc_000", "file": str(test / "images" / "disc_000.png"), "decision": "rejected", "nuclei": []},
        {"image": "disc_002", "file": "/elsewhere/disc_002.jpg", "decision": None, "nuclei": [mark]},
    ]
    (tmp_path / "d.json").write_text(json.dumps({"format": "cervseg-jax decisions", "images": content}))
    code, stdout, stderr = run("eval", copy, "--data", tmp_path / "data", "--decisions", tmp_path / "d.json")
    assert code == 0, stderr
    assert "rejected in review and not scored: 1 images (disc_000)" in stdout
    out = copy / "eval" / "data-test-reviewed"
    rows = {entry["stem"]: entry for entry in rows_of(out / "per_image.csv")}
    assert sorted(rows) == ["disc_001", "disc_002", "disc_003", "disc_004"]
    for stem, entry in rows.items():
        truth = (masks[stem] > 0) & ((labels[stem] != 1) | (stem != "disc_002"))
        predicted = cv2.imread(str(out / "masks" / f"{stem}.png"), cv2.IMREAD_GRAYSCALE) > 0
        expected = 2 * (predicted & truth).sum() / (predicted.sum() + truth.sum())
        assert float(entry["dice"]) == pytest.approx(expected, abs=1e-6)
    if with_instances:
        counts = {entry["stem"]: int(entry["num_true"]) for entry in rows_of(out / "nuclei_per_image.csv")}
        assert counts == {stem: labels[stem].max() - (stem == "disc_002") for stem in rows}
