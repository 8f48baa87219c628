"""The page as a reader uses it, in a real browser."""

import base64

import cv2
import numpy as np
import pytest

from tests.report.browser import Browser, find_chromium
from tests.report.test_page import page, scored

__all__ = ["page", "scored"]  # the fixtures

PROGRAM = find_chromium()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="needs Chromium (Debian: apt-get install chromium)")

NAMES = "[...document.querySelectorAll('.cards b')].map((node) => node.textContent)"
VALUES = "[...document.querySelectorAll('.cards span')].map((node) => Number(node.textContent.split(' ').pop()))"
UNREACHABLE = """[...document.querySelectorAll('main *')].filter((node) =>
    ['auto', 'scroll'].includes(getComputedStyle(node).overflowX) && node.scrollWidth > node.clientWidth
    && node.tabIndex < 0 && !node.querySelector('a, button, input')).map((node) => node.outerHTML.slice(0, 80))"""
SHOWN_LAYERS = "[...document.querySelectorAll('.stack img')].filter((n) => !n.hidden).map((n) => n.dataset.layer)"


@pytest.fixture
def browser(scored, page):
    with Browser(PROGRAM) as opened:
        opened.open(scored / "report.html")
        yield opened
        assert opened.errors == []
        assert opened.requests == [(scored / "report.html").as_uri()]  # and nothing else


def set_field(browser, selector, value, event="input"):
    browser.run(
        f"(() => {{ const node = document.querySelector({selector!r}); node.value = {value!r}; "
        f"node.dispatchEvent(new Event({event!r})); }})()"
    )


def wait_for(browser, condition):
    for _ in range(500):
        if browser.run(condition):
            return
    raise AssertionError(condition)


def test_the_gallery_sorts_filters_and_searches(browser):
    values = browser.run(VALUES)
    assert len(values) == 5
    assert values == sorted(values)
    browser.run("document.querySelector('#gallery button').click()")
    assert browser.run(VALUES) == sorted(values, reverse=True)
    set_field(browser, "#gallery select", "recall", "change")
    recalls = browser.run(VALUES)
    assert recalls == sorted(recalls)
    set_field(browser, "#gallery select", "brier", "change")
    errors = browser.run(VALUES)
    assert errors == sorted(errors, reverse=True)  # the worst first, where lower is better
    set_field(browser, "#gallery select", "recall", "change")
    middle = sorted(recalls)[2]
    set_field(browser, "#gallery input[aria-label='at least']", str(middle))
    assert all(value >= middle for value in browser.run(VALUES))
    assert browser.run("document.querySelector('[role=status]').textContent").endswith("of 5 images")
    set_field(browser, "#gallery input[aria-label='at least']", "")
    set_field(browser, "#gallery input[type=search]", "DISC_003")
    assert browser.run(NAMES) == ["disc_003"]


def test_pictures_are_drawn_without_scrolling(browser):
    """As in a picture of the whole page; only the cards after the first hundred are drawn as they come into view."""
    loaded = "[...document.querySelectorAll('.cards img')].filter((n) => n.complete && n.naturalWidth).length"
    wait_for(browser, f"{loaded} === 5")
    clip = browser.run(
        "(() => { const box = document.querySelector('.cards').getBoundingClientRect(); return "
        "{x: box.x, y: box.y + scrollY, width: box.width, height: box.height, scale: 1}; })()"
    )
    data = browser.call("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)["data"]
    shot = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)
    background = np.median(shot.reshape(-1, 3), axis=0)
    assert (np.abs(shot - background).max(axis=2) > 20).mean() > 0.3


def test_the_viewer_works_by_keyboard_alone(browser):
    browser.run("document.querySelector('.cards button').focus()")
    first = browser.run(NAMES)
    browser.press("Enter")
    assert browser.run("document.querySelector('dialog').open")
    assert browser.run("document.querySelector('dialog h3').textContent") == first[0]
    assert browser.run(SHOWN_LAYERS) == ["image", "truth", "prediction"]
    browser.press("4")
    browser.press("2")
    assert browser.run(SHOWN_LAYERS) == ["image", "prediction", "difference"]
    pressed = browser.run("document.querySelector('[data-layer=difference]').getAttribute('aria-pressed')")
    assert pressed == "true"
    wait_for(browser, "parseFloat(document.querySelector('.stack').style.width) > 1")  # the image is there
    scale = "Number(document.querySelector('.stack').style.transform.match(/scale\\(([\\d.]+)/)[1])"
    before = browser.run(scale)
    browser.press("+")
    assert browser.run(scale) == pytest.approx(1.25 * before, rel=1e-4)
    place = browser.run("document.querySelector('.stack').style.transform")
    browser.press("ArrowLeft")
    assert browser.run("document.querySelector('.stack').style.transform") != place
    browser.press("0")
    assert browser.run(scale) == pytest.approx(before, rel=1e-4)
    browser.press("n")
    assert browser.run("document.querySelector('dialog h3').textContent") == first[1]
    assert browser.run(SHOWN_LAYERS) == ["image", "prediction", "difference"]  # remembered
    browser.press("Escape")
    wait_for(browser, "!document.querySelector('dialog')")


def test_layers_lie_over_each_other_with_the_chosen_opacity(browser):
    browser.run("document.querySelector('.cards button').click()")
    set_field(browser, "dialog input[type=range]", "0.5")
    assert browser.run("document.querySelector('.stack [data-layer=truth]').style.opacity") == "0.5"
    assert browser.run("document.querySelector('.stack [data-layer=image]').style.opacity") == "1"
    boxes = browser.run(
        "[...document.querySelectorAll('.stack img')].filter((n) => !n.hidden)"
        ".map((n) => JSON.stringify(n.getBoundingClientRect()))"
    )
    assert len(set(boxes)) == 1


def test_the_slider_shows_each_epoch(browser):
    source = "document.querySelector('.frames img + img').src"
    seen = set()
    for number in range(3):
        set_field(browser, "#epochs input", str(number))
        assert browser.run("document.querySelector('#epochs output').textContent") == str(number + 1)
        seen.add(browser.run(source))
    assert len(seen) >= 2
    browser.run("document.querySelector('#epochs button').click()")
    assert browser.run("document.querySelector('#epochs button').textContent") == "Stop"


def test_curves_zoom_by_numbers_and_by_dragging(browser):
    labels = "[...document.querySelectorAll('#curves svg')].map((node) => node.getAttribute('aria-label'))"
    assert browser.run(labels) == [f"{name} over epochs 1 to 3" for name in ("loss", "metrics", "learning rate")]
    set_field(browser, "#curves input", "2", "change")
    assert all(label.endswith("2 to 3") for label in browser.run(labels))
    browser.run("document.querySelector('#curves button').click()")
    browser.run("document.querySelector('#curves').scrollIntoView()")
    box = browser.run("(({left, top, width, height}) => [left, top, width, height])"
                      "(document.querySelector('#curves svg').getBoundingClientRect())")  # fmt: skip
    y = box[1] + box[3] / 2
    browser.drag((box[0] + 0.14 * box[2], y), (box[0] + 0.58 * box[2], y))
    assert all(label.endswith("1 to 2") for label in browser.run(labels))


def test_it_fits_a_phone_in_the_dark(scored, page):
    with Browser(PROGRAM, width=390, height=844, dark=True, phone=True) as browser:
        browser.open(scored / "report.html")
        assert browser.run("document.documentElement.scrollWidth") <= 390
        color = browser.run("getComputedStyle(document.body).backgroundColor")
        assert max(map(int, color[4:-1].split(","))) < 60
        assert browser.run(UNREACHABLE) == []
        chart = "getComputedStyle(document.querySelector('.chart.static text')).fill"
        assert min(map(int, browser.run(chart)[4:-1].split(","))) > 120  # light on dark
        assert browser.errors == []


def test_every_control_has_a_name(browser):
    browser.run("document.querySelector('.cards button').click()")
    nameless = browser.run(
        "[...document.querySelectorAll('button, input, select, img')].filter((node) => node.tagName === 'IMG' ? "
        "!node.hasAttribute('alt') : !(node.textContent.trim() || node.ariaLabel || (node.labels || []).length))"
        ".map((node) => node.outerHTML.slice(0, 80))"
    )
    assert nameless == []
    assert browser.run("[...document.querySelectorAll('th')].filter((node) => !node.textContent.trim()).length") == 0
