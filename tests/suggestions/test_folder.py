"""The folder of suggested images: nothing that a person has made or changed is written over."""

import json

import numpy as np
import pytest

from cervseg_jax.annotations.labelme import parse_labelme
from cervseg_jax.annotations.outlines import draw_instances
from cervseg_jax.annotations.polygons import polygons_of
from cervseg_jax.annotations.preannotation import Suggestion, read_suggestions, state_of
from cervseg_jax.errors import ConfigError, DataError
from cervseg_jax.files import png_bytes
from cervseg_jax.suggestions.folder import Prepared, open_folder, preannotation, write_folder

IMAGE = np.full((60, 80, 3), 200, np.uint8)


def labels_with(*radii):
    rows, columns = np.mgrid[:60, :80]
    labels = np.zeros((60, 80), np.int32)
    for index, radius in enumerate(radii):
        labels[(rows - 30) ** 2 + (columns - 15 - 25 * index) ** 2 < radius**2] = index + 1
    return labels


def prepared(name="a", radii=(9, 6, 11), order=1, label="nucleus"):
    polygons = polygons_of(labels_with(*radii))
    text, digest = preannotation(polygons, label=label, image_path=f"{name}.png", shape=(60, 80))
    row = Suggestion(
        order, f"{name}.png", f"/pool/{name}.png", "0" * 64, 0, 0, 60, 80, 60, 80, 3, 0.5, 1.0, 0.5, "", digest
    )
    return Prepared(row, png_bytes(IMAGE), text)


def edited(path, change):
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_pre_annotations_have_few_corners_and_nearly_the_same_pixels(tmp_path):
    labels = labels_with(9, 6, 11)
    document = json.loads(prepared(label="Nucleus: A").annotation)
    assert document["flags"] == {"checked": False}
    assert document["imagePath"] == "a.png"
    objects = parse_labelme(document, source=tmp_path).objects
    assert {entry.label for entry in objects} == {"Nucleus: A"}
    assert max(len(entry.rings[0]) for entry in objects) < 30
    drawn = draw_instances([entry.rings for entry in objects], shape=(60, 80))
    for label in (1, 2, 3):
        common = ((drawn == label) & (labels == label)).sum()
        assert common / ((drawn == label) | (labels == label)).sum() > 0.9


def test_the_list_says_what_was_written(tmp_path):
    image = prepared()
    written = write_folder(tmp_path / "todo", [image], open_folder(tmp_path / "todo"))
    assert (written.num_written, written.kept) == (1, [])
    assert read_suggestions(tmp_path / "todo") == {"a": image.suggestion}
    assert state_of(tmp_path / "todo" / "a.json", image.suggestion) == "untouched"


def test_unchanged_files_are_recognized_after_another_program_saved_them(tmp_path):
    image = prepared()
    write_folder(tmp_path, [image], {})
    path = tmp_path / "a.json"
    edited(path, lambda document: document.update(version="6.3.1", imageData=None))
    assert state_of(path, image.suggestion) == "untouched"
    edited(path, lambda document: document["flags"].update(checked=True))
    assert state_of(path, image.suggestion) == "checked"
    edited(path, lambda document: document["shapes"][1]["points"][0].__setitem__(0, 1.0))
    assert state_of(path, image.suggestion) == "corrected"


@pytest.mark.parametrize(
    "change",
    [
        lambda document: document["shapes"].pop(),
        lambda document: document["shapes"][0].update(label="debris"),
        lambda document: document["flags"].update(checked=True),
    ],
)
def test_what_a_person_has_changed_is_kept_and_the_rest_renewed(tmp_path, change):
    write_folder(tmp_path, [prepared("a"), prepared("b", order=2)], {})
    edited(tmp_path / "a.json", change)
    before = (tmp_path / "a.json").read_bytes()
    newer = [prepared("a", (8, 5, 10)), prepared("b", (8, 5, 10), order=2)]
    written = write_folder(tmp_path, newer, open_folder(tmp_path))
    assert (written.num_written, written.kept) == (1, ["a.json"])
    assert (tmp_path / "a.json").read_bytes() == before
    assert (tmp_path / "b.json").read_text() == newer[1].annotation
    suggestions = read_suggestions(tmp_path)
    assert state_of(tmp_path / "a.json", suggestions["a"]) in ("corrected", "checked")
    assert state_of(tmp_path / "b.json", suggestions["b"]) == "untouched"
    # Killed after the list was written and before the annotation: the earlier one is no correction.
    (tmp_path / "b.json").write_text(prepared("b").annotation)
    assert state_of(tmp_path / "b.json", suggestions["b"]) == "untouched"


def test_a_file_that_is_no_annotation_is_kept(tmp_path):
    write_folder(tmp_path, [prepared()], {})
    (tmp_path / "a.json").write_text("half a fi")
    assert write_folder(tmp_path, [prepared(radii=(5, 5, 5))], open_folder(tmp_path)).kept == ["a.json"]
    assert (tmp_path / "a.json").read_text() == "half a fi"


def test_earlier_suggestions_stay_in_the_list_after_the_new_ones(tmp_path):
    write_folder(tmp_path, [prepared("a"), prepared("b", order=2)], {})
    write_folder(tmp_path, [prepared("c")], open_folder(tmp_path))
    assert [(entry.order, entry.image) for entry in read_suggestions(tmp_path).values()] == [
        (1, "c.png"),
        (2, "a.png"),
        (3, "b.png"),
    ]


def test_foreign_folders_and_pictures_are_refused(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ConfigError, match="is not an empty folder"):
        open_folder(tmp_path)
    write_folder(tmp_path / "todo", [prepared()], {})
    (tmp_path / "todo" / "a.png").write_bytes(png_bytes(IMAGE[:30]))
    with pytest.raises(ConfigError, match="a.png is another picture"):
        write_folder(tmp_path / "todo", [prepared()], open_folder(tmp_path / "todo"))
    (tmp_path / "todo" / "suggestions.csv").write_text("image,source,written,order\na.png,b,c,x\n")
    with pytest.raises(DataError, match="row 2 is damaged"):
        open_folder(tmp_path / "todo")
