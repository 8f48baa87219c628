"""The reviewing section of an inference folder: its data, and its use by keyboard in a real browser."""

import json
import time

import cv2
import numpy as np
import pytest

from cervseg_jax.annotations.decisions import read_decisions
from cervseg_jax.report.review import review_entry
from tests.helpers import embedded_data, run
from tests.report.browser import Browser, find_chromium

PROGRAM = find_chromium()
needs_browser = pytest.mark.skipif(PROGRAM is None, reason="needs Chromium (Debian: apt-get install chromium)")
SIDE, PERIOD = 200, 20


def grid_of_nuclei(side=SIDE):
    """A label map with a disc of 12 pixels in each square of 20."""
    rows, columns = np.mgrid[:side, :side]
    inside = (rows % PERIOD - 9.5) ** 2 + (columns % PERIOD - 9.5) ** 2 < 36
    return np.where(inside, rows // PERIOD * (side // PERIOD) + columns // PERIOD + 1, 0).astype(np.uint16)


def write_inference_folder(folder, names, side=SIDE):
    """Writes what the page needs of an output folder of `infer`."""
    labels = grid_of_nuclei(side)
    image = np.where(labels[..., None] > 0, np.uint8((90, 60, 70)), np.uint8((230, 220, 225)))
    for name in ("images", "instances"):
        (folder / name).mkdir(parents=True)
    lines = ["image,file,height,width,num_nuclei,foreground,uncertainty"]
    for index, name in enumerate(names):
        cv2.imwrite(str(folder / "images" / f"{name}.png"), image)
        cv2.imwrite(str(folder / "instances" / f"{name}.png"), labels)
        file = folder / "images" / f"{name}.png"
        lines.append(f"{name},{file},{side},{side},{labels.max()},0.28,{0.5 - 0.1 * index}")
    (folder / "images.csv").write_text("\n".join(lines) + "\n")
    assert run("report", folder)[0] == 0
    return labels


def test_the_page_holds_a_point_inside_of_each_nucleus_and_its_outline(tmp_path):
    labels = write_inference_folder(tmp_path, ["a", "b"])
    images = embedded_data((tmp_path / "report.html").read_text())["images"]
    entry = images[0]["review"]
    assert entry["file"] == str(tmp_path / "images" / "a.png")
    assert entry["picture"] is None  # the layer of the viewer is as large
    assert [one["label"] for one in entry["nuclei"]] == list(range(1, 101))
    for one in entry["nuclei"]:
        x, y = one["point"]
        assert labels[int(y), int(x)] == one["label"]
        ring = np.array(one["rings"][0]).reshape(-1, 2)
        area = cv2.contourArea(ring.astype(np.float32))
        assert area == pytest.approx((labels == one["label"]).sum(), rel=0.15)


def test_an_image_that_is_larger_than_the_layers_gets_a_picture_of_its_own(tmp_path):
    image = np.zeros((700, 20, 3), np.uint8)
    assert review_entry(image, None, file=tmp_path)["picture"].startswith("data:image/jpeg;base64,")
    assert review_entry(image, None, file=tmp_path)["nuclei"] == []


@pytest.fixture
def browser(tmp_path):
    write_inference_folder(tmp_path, ["a", "b"])
    with Browser(PROGRAM) as opened:
        opened.open(tmp_path / "report.html")
        opened.run("document.querySelector('.review-stage').focus()")
        yield opened
        assert opened.errors == []


def where(browser):
    return browser.run("document.querySelector('.review-where').textContent")


def said(browser):
    return browser.run("document.querySelector('.review-said').textContent")


def saved(browser):
    """Saves through a stand-in for the browser's dialog; returns what was written."""
    browser.run(
        "window.showSaveFilePicker = async () => ({name: 'x.json', createWritable: async () => "
        "({write: (text) => { window.written = text; }, close: () => {}})})"
    )
    browser.press("s")
    for _ in range(200):
        if said(browser).startswith("saved as x.json"):
            break
        time.sleep(0.01)
    return json.loads(browser.run("window.written"))


@needs_browser
def test_decisions_are_made_undone_and_saved_by_keyboard_alone(browser, tmp_path):
    assert where(browser) == "a: image not decided; nucleus 1 of 100: not decided; 0 of 100 nuclei decided"
    browser.press("a")
    browser.press("j")
    browser.press("r")
    browser.press("k")
    browser.press("f")
    assert said(browser) == "nucleus 3 flagged."  # instead of rejected
    assert where(browser).endswith("nucleus 4 of 100: not decided; 2 of 100 nuclei decided")
    browser.press("r")
    browser.press("u")
    assert where(browser).endswith("nucleus 4 of 100: not decided; 2 of 100 nuclei decided")
    browser.press("J", shift=True)
    browser.press("R", shift=True)
    assert where(browser).startswith("b: image rejected")
    browser.press("z")
    (tmp_path / "decisions.json").write_text(json.dumps(saved(browser)))
    decisions = read_decisions(tmp_path / "decisions.json")
    a, b = decisions.images
    assert (a.name, a.verdict, b.name, b.verdict) == ("a", None, "b", "rejected")
    labels = grid_of_nuclei()
    assert {int(labels[int(y), int(x)]): verdict for (x, y), verdict in a.nuclei} == {1: "accepted", 3: "flagged"}
    assert decisions.about(tmp_path / "images" / "b.png") is b


@needs_browser
def test_the_draft_survives_a_reload_and_a_file_can_be_downloaded_and_continued(browser, tmp_path):
    browser.press("r")
    browser.press("F", shift=True)
    browser.open(tmp_path / "report.html")
    assert where(browser) == "a: image flagged; nucleus 1 of 100: rejected; 1 of 100 nuclei decided"
    browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path / "downloads"))
    browser.run("delete window.showSaveFilePicker; window.showSaveFilePicker = undefined")
    browser.run("document.querySelector('.review-stage').focus()")
    browser.press("s")
    path = tmp_path / "downloads" / "decisions.json"
    for _ in range(300):
        if path.is_file():
            break
        time.sleep(0.02)
    decisions = read_decisions(path)
    assert [(entry.name, entry.verdict, len(entry.nuclei)) for entry in decisions.images] == [("a", "flagged", 1)]
    browser.run("localStorage.clear()")
    browser.open(tmp_path / "report.html")
    assert where(browser).startswith("a: image not decided")
    document = browser.call("DOM.getDocument")["root"]["nodeId"]
    node = browser.call("DOM.querySelector", nodeId=document, selector="#review input[type=file]")["nodeId"]
    browser.call("DOM.setFileInputFiles", files=[str(path)], nodeId=node)
    for _ in range(200):
        if "read the decisions" in said(browser):
            break
        time.sleep(0.01)
    assert where(browser) == "a: image flagged; nucleus 1 of 100: rejected; 1 of 100 nuclei decided"


@needs_browser
def test_clicking_selects_a_nucleus_and_the_focus_is_visible(browser):
    box = browser.run(
        "(() => { const node = document.querySelector('.review-stage canvas'); node.scrollIntoView(); const box = "
        "node.getBoundingClientRect(); return [box.left, box.top, box.width, box.height]; })()"
    )
    scale = min(box[2], box[3]) / SIDE
    center = box[0] + box[2] / 2, box[1] + box[3] / 2
    x, y = center[0] + (110 - SIDE / 2) * scale, center[1] + (70 - SIDE / 2) * scale
    browser.drag((x, y), (x, y))
    assert "nucleus 36 of 100" in where(browser)  # row 3, column 5
    browser.press("j")  # the picture has the focus
    assert browser.run("getComputedStyle(document.querySelector('.review-stage')).outlineStyle") == "solid"


@needs_browser
def test_thousands_of_nuclei_are_quick(tmp_path):
    write_inference_folder(tmp_path, ["many"], side=1400)
    with Browser(PROGRAM) as browser:
        browser.open(tmp_path / "report.html")
        browser.run("document.querySelector('.review-stage').focus()")
        start = time.monotonic()
        for _ in range(10):
            browser.press("a")
        seconds = (time.monotonic() - start) / 10
        assert where(browser).endswith("nucleus 11 of 4900: not decided; 10 of 4900 nuclei decided")
        assert seconds < 1.0
        assert browser.errors == []
