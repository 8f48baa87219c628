"""What the page holds, from finished, unfinished and damaged folders."""

import base64
import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from cervseg_jax.data.pairs import Pair
from cervseg_jax.evaluation.pictures import write_sheets
from cervseg_jax.report import gallery
from cervseg_jax.report.gallery import embedded, evaluated_images, inferred_images
from cervseg_jax.report.run_data import Evaluation, load_inference
from cervseg_jax.schema import DataConfig
from tests.helpers import draw_discs, embedded_data, refused, rows_of, run


@pytest.fixture(scope="module")
def scored(finished, tmp_path_factory):
    """A copy of a finished run with its test images scored."""
    _, folder, _ = finished
    copy = tmp_path_factory.mktemp("scored") / "run"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("eval", "run-*"))
    assert run("eval", copy, "--set", "infer.threshold=0.3")[0] == 0
    return copy


@pytest.fixture(scope="module")
def page(scored):
    code, _, stderr = run("report", scored)
    assert code == 0, stderr
    return (scored / "report.html").read_text()


def test_the_page_needs_nothing_but_itself(page):
    addresses = re.findall(r'(?:src|href)\s*=\s*"([^"]*)"', page)
    assert addresses
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert not re.search(r"https?://|@import|url\(", page.replace("http://www.w3.org/2000/svg", ""))


def test_the_page_says_what_the_evaluation_found(scored, page):
    summary = json.loads((scored / "eval" / "test" / "summary.json").read_text())
    low, high = summary["intervals"]["dice_mean"]
    assert f"{summary['dice_mean']:.3f} [{low:.3f}, {high:.3f}]" in page
    assert "the images come from only 5 sources" in page
    assert "Not a medical device" in page
    assert "No image file is in more than one split. Patients and slides are unknown" in page
    assert summary["command"].split()[1] == "eval"
    assert summary["command"] in page
    data = embedded_data(page)
    dices = {row["stem"]: float(row["dice"]) for row in rows_of(scored / "eval" / "test" / "per_image.csv")}
    assert {image["name"]: image["scores"]["dice"] for image in data["images"]} == pytest.approx(dices)
    assert all(image["thumbnail"].startswith("data:image/jpeg;base64,") for image in data["images"])
    layers = {"image", "truth", "prediction", "difference", "probability"}
    assert all(set(image["layers"]) == layers for image in data["images"])
    assert data["history"]["epoch"] == [1, 2, 3]
    assert "<p>Validation images; predicted masks are pink.</p>" in page
    assert data["epochs"]["epochs"] == [1, 2, 3]
    assert [len(image["masks"]) for image in data["epochs"]["images"]] == [3, 3]


def test_cards_carry_the_same_figures(scored, page):
    summary = json.loads((scored / "eval" / "test" / "summary.json").read_text())
    model, data = ((scored / f"{name}_CARD.md").read_text() for name in ("MODEL", "DATA"))
    assert f"| Dice | {summary['dice_mean']:.3f} [" in model
    assert summary["weights_sha256"][0] in model
    assert "| train | 6 | 6 |" in data
    for card in (model, data):
        assert "Not a medical device" in card


def test_layers_are_bounded_and_the_worst_images_have_them(scored):
    code, stdout, _ = run("report", scored, "--layers", 2, "--out", scored / "small.html")
    assert code == 0
    assert "MiB" in stdout
    images = embedded_data((scored / "small.html").read_text())["images"]
    assert [image["layers"] is not None for image in images] == [True, False, False, False, True]
    assert "2 open in layers" in (scored / "small.html").read_text()


def test_an_unfinished_run_has_a_page(finished, tmp_path):
    _, folder, _ = finished
    (tmp_path / "young").mkdir()
    shutil.copy(folder / "config.yaml", tmp_path / "young")
    assert run("report", tmp_path / "young")[0] == 0
    text = (tmp_path / "young" / "report.html").read_text()
    assert "Training is in progress" in text
    assert "No epoch is finished yet" in text
    (tmp_path / "young" / "log.jsonl").write_text('{"event": "resumed", "step": 2, "time": 1}\n{"event": "ste')
    for name in ("metrics.csv", "history.json"):
        shutil.copy(folder / name, tmp_path / "young")
    assert run("report", tmp_path / "young")[0] == 0
    text = (tmp_path / "young" / "report.html").read_text()
    assert "resumed" in text
    assert embedded_data(text)["history"]["epoch"] == [1, 2, 3]


def test_an_inference_folder_has_a_page_sorted_by_uncertainty(finished, tmp_path):
    _, folder, _ = finished
    draw_discs(tmp_path / "in", count=3, size=(60, 50), seed=50)
    (tmp_path / "in" / "images" / "broken.png").write_bytes(b"no image")
    assert run("infer", folder, "--images", tmp_path / "in" / "images", "--out", tmp_path / "out")[0] == 1
    assert run("report", tmp_path / "out")[0] == 0
    text = (tmp_path / "out" / "report.html").read_text()
    uncertainties = [image["scores"]["uncertainty"] for image in embedded_data(text)["images"]]
    assert len(uncertainties) == 3
    assert uncertainties == sorted(uncertainties, reverse=True)
    assert "broken.png" in text
    assert set(embedded_data(text)["images"][0]["layers"]) == {"image", "prediction", "instances"}
    assert "does not say how good the masks are" in text


def test_an_inference_folder_of_masks_alone_has_a_page(finished, tmp_path):
    _, folder, _ = finished
    draw_discs(tmp_path / "in", count=2, size=(60, 50), seed=51)
    images, out = tmp_path / "in" / "images", tmp_path / "out"
    assert run("infer", folder, "--images", images, "--out", out, "--output", "masks")[0] == 0
    assert rows_of(out / "images.csv")[0]["num_nuclei"] == ""
    code, _, stderr = run("report", out)
    assert code == 0, stderr
    shown = embedded_data((out / "report.html").read_text())["images"]
    assert [set(image["layers"]) for image in shown] == [{"image", "prediction"}] * 2
    assert all("num_nuclei" not in image["scores"] for image in shown)
    assert all(image["scores"]["uncertainty"] >= 0 for image in shown)


def test_images_without_a_dice_have_a_card(finished, tmp_path):
    _, folder, _ = finished
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("eval", "run-*"))
    draw_discs(tmp_path / "some", count=2, seed=41)
    for path in (tmp_path / "some" / "masks").glob("disc_001.png"):
        cv2.imwrite(str(path), np.zeros((48, 40), np.uint8))
    settings = ("--set", "infer.threshold=0.999")  # nothing is found
    assert run("eval", copy, "--data", tmp_path / "some", *settings)[0] == 0
    code, _, stderr = run("report", copy)
    assert code == 0, stderr
    text = (copy / "report.html").read_text()
    assert "<p>dice is undefined for 1 images, which its mean leaves out.</p>" in text
    scores = {image["name"]: image["scores"]["dice"] for image in embedded_data(text)["images"]}
    assert scores == {"disc_000": 0, "disc_001": None}


def test_wrong_folders_and_damaged_files_end_in_one_message(scored, tmp_path):
    assert "no such folder" in refused(2, "report", tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    assert "is neither a run folder" in refused(2, "report", tmp_path / "empty")
    copy = tmp_path / "copy"
    shutil.copytree(scored, copy)
    (copy / "eval" / "test" / "summary.json").write_text("{")
    assert "summary.json: is damaged" in refused(4, "report", copy)
    for file, text in (
        ("history.json", '{"epoch": [1, 2], "loss": [1]}'),
        ("history.json", '{"epoch": 3}'),
        ("best/contract.json", '{"epoch": 3}'),
    ):
        before = (copy / file).read_text()
        (copy / file).write_text(text)
        assert f"{file}: is damaged" in refused(4, "report", copy)
        (copy / file).write_text(before)
    (copy / "config.yaml").write_text("model: 3")
    assert "config.yaml cannot be used" in refused(4, "report", copy)


def test_nan_in_a_history_is_a_gap(scored, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(scored, copy)
    history = json.loads((copy / "history.json").read_text())
    (copy / "history.json").write_text(json.dumps(history | {"loss": [float("nan")] * len(history["loss"])}))
    assert run("report", copy)[0] == 0


def test_images_that_have_moved_keep_their_scores(scored, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(scored, copy)
    table = copy / "eval" / "test" / "per_image.csv"
    table.write_text(table.read_text().replace("/test/images/disc_00", "/elsewhere/disc_00"))
    assert run("report", copy)[0] == 0
    text = (copy / "report.html").read_text()
    assert "The files of 5 images were moved or deleted" in text
    assert all(image["scores"]["dice"] >= 0 for image in embedded_data(text)["images"])


def test_no_name_can_break_out_of_the_page(tmp_path):
    evil = "</script><script>alert(1)</script>"
    text = embedded("page-data", [{"name": evil}])
    assert text.count("</script>") == 1
    assert json.loads(text[text.index(">") + 1 : text.rindex("<")])[0]["name"] == evil


def test_thousands_of_images_stay_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(gallery, "MAX_THUMBNAILS", 200)
    draw_discs(tmp_path, count=1, size=(300, 300))
    (tmp_path / "split" / "masks").mkdir(parents=True)
    (tmp_path / "split" / "probabilities").mkdir()
    shutil.copy(tmp_path / "masks" / "disc_000.png", tmp_path / "split" / "masks")
    cv2.imwrite(str(tmp_path / "split" / "probabilities" / "disc_000.png"), np.full((300, 300), 128, np.uint8))
    row = {"stem": "disc_000", "group": "g", "dice": "0.5", "mask_path": str(tmp_path / "masks" / "disc_000.png")}
    row["image_path"] = str(tmp_path / "images" / "disc_000.png")
    evaluation = Evaluation("test", tmp_path / "split", {}, [row] * 205)
    images = evaluated_images(evaluation, DataConfig(root=tmp_path), num_layered=3, on_progress=lambda: None)
    assert len(images) == 200
    assert sum(image["layers"] is not None for image in images) <= 3
    assert len(json.dumps(images)) / len(images) < 16_000  # bytes for each image


def brightness(uri):
    packed = np.frombuffer(base64.b64decode(uri.partition(",")[2]), np.uint8)
    return float(cv2.imdecode(packed, cv2.IMREAD_COLOR).mean())


def test_pictures_of_16_bit_images_are_scaled_as_in_prediction(tmp_path):
    """A dark image among 12-bit ones stays dark; by its own values it would be brighter."""
    folder = tmp_path / "found"
    for name in ("images", "masks", "split/masks", "found/masks", "found/.done"):
        (tmp_path / name).mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "images" / "a.png"), np.full((64, 64), 1000, np.uint16))  # 10 bits of 12
    for name in ("masks", "split/masks", "found/masks"):
        cv2.imwrite(str(tmp_path / name / "a.png"), np.zeros((64, 64), np.uint8))
    paths = {"image_path": str(tmp_path / "images" / "a.png"), "mask_path": str(tmp_path / "masks" / "a.png")}
    evaluation = Evaluation("test", tmp_path / "split", {}, [{"stem": "a", "group": "g", "dice": "0.5"} | paths])
    (folder / "images.csv").write_text(f"image,file,uncertainty\na,{paths['image_path']},0\n")
    pair = Pair("a", "g", Path(paths["image_path"]), Path(paths["mask_path"]))
    for depth, expected in (("auto", 249), (12, 62), (16, 4)):
        data = DataConfig(root=tmp_path, bit_depth=depth)
        (scored,) = evaluated_images(evaluation, data, num_layered=0, on_progress=lambda: None)
        assert brightness(scored["thumbnail"]) == pytest.approx(expected, abs=2)
        (folder / ".done" / "made_with.json").write_text(json.dumps({"bit_depth": depth}))
        (found,) = inferred_images(load_inference(folder), num_layered=0, on_progress=lambda: None)
        assert brightness(found["thumbnail"]) == pytest.approx(expected, abs=2)
        write_sheets(tmp_path / "split", [pair], count=1, data=data)
        sheet = cv2.imread(str(tmp_path / "split" / "worst.png"))
        values, counts = np.unique(sheet[..., 0], return_counts=True)
        assert counts[np.abs(values.astype(int) - expected) <= 2].sum() >= 2 * 64 * 64
