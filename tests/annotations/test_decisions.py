"""Files of decisions, and what they mean for outlines and label maps."""

import json
from pathlib import Path

import numpy as np
import pytest
from shapely.geometry import Point, Polygon

from cervseg_jax.annotations.decisions import covers, labels_at, read_decisions, remaining_labels
from cervseg_jax.errors import ConfigError, DataError


def decisions_file(folder, *images):
    path = folder / "decisions.json"
    path.write_text(json.dumps({"format": "cervseg-jax decisions", "version": 1, "images": list(images)}))
    return path


def entry(name, decision=None, *nuclei, file=None):
    marks = [{"label": 1, "x": x, "y": y, "decision": verdict} for x, y, verdict in nuclei]
    return {"image": name, "file": file, "decision": decision, "nuclei": marks}


def test_what_was_decided_is_read(tmp_path):
    path = decisions_file(tmp_path, entry("a", "flagged", (3.5, 4.5, "rejected"), (9, 9, "accepted")), entry("b"))
    a, b = read_decisions(path).images
    assert (a.name, a.verdict, a.is_flagged) == ("a", "flagged", True)
    assert a.rejected(top=4, left=3) == [(0.5, 0.5)]
    assert (b.verdict, b.is_flagged, b.rejected()) == (None, False, [])


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([entry("a", "maybe")], "image 1: decision must be one of accepted, rejected, flagged, got 'maybe'"),
        ([entry("a", None, (None, 2, "rejected"))], "image 1, nucleus 1: has no point x, y"),
        ([entry("a", None, (1, 2, None))], "image 1, nucleus 1: decision must be one of"),
        ([{"file": "x"}], "image 1: has no name"),
        ([{"image": "a", "nuclei": 3}], "nuclei must be a list"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, images, message):
    with pytest.raises(DataError, match=message):
        read_decisions(decisions_file(tmp_path, *images))


def test_other_files_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="--decisions: no such file"):
        read_decisions(tmp_path / "decisions.json")
    (tmp_path / "x.json").write_text('{"shapes": []}')
    with pytest.raises(DataError, match="holds no decisions of a reviewing page"):
        read_decisions(tmp_path / "x.json")


def test_an_image_is_recognized_by_its_path_or_else_by_its_stem(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").touch()
    path = decisions_file(
        tmp_path,
        entry("a_png", "rejected", file=str(tmp_path / "one" / "a.png")),
        entry("a_png_2", "flagged", file=str(tmp_path / "two" / "a.png")),
        entry("b", "accepted", file="/elsewhere/b.jpg"),
    )
    decisions = read_decisions(path)
    assert decisions.about(tmp_path / "two" / ".." / "one" / "a.png").verdict == "rejected"
    assert decisions.about(tmp_path / "two" / "a.png").verdict == "flagged"
    assert decisions.about(Path("copy/b.png")).verdict == "accepted"
    assert decisions.about(Path("copy/c.png")) is None
    with pytest.raises(DataError, match="several images named a"):
        decisions.about(Path("copy/a.png"))


def test_an_outline_covers_the_points_that_shapely_finds_inside(rng):
    ring = np.array([[2, 1], [17.5, 4], [9, 9.2], [15, 18], [1, 14.0]])
    shape = Polygon(ring)
    for x, y in rng.integers(0, 20, (200, 2)) + 0.5:
        assert covers([ring], [(x, y)]) == shape.contains(Point(x, y))


def test_rejected_nuclei_leave_label_maps_and_masks():
    labels = np.zeros((6, 9), np.int32)
    labels[1:3, 1:3], labels[1:3, 3:5], labels[4, 7] = 5, 2, 9
    assert labels_at(labels, [(1.5, 1.5), (8.9, 5.9), (-1, 2), (4, 99)]) == {5}
    kept = remaining_labels(labels, [(2.5, 2.5)])
    assert set(np.unique(kept)) == {0, 2, 9}
    mask = (labels > 0).astype(np.uint8)
    kept = remaining_labels(mask, [(2.5, 2.5)], has_instances=False)
    assert kept.dtype == np.uint8
    assert kept.sum() == 1  # both touching nuclei are one component of a mask
    assert kept[4, 7] == 1
    assert remaining_labels(mask, []) is mask
