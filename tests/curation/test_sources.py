"""Layouts and annotations of other programs, prepared into datasets."""

import json
import unicodedata

import cv2
import numpy as np
import pytest
from PIL import Image

from cervseg_jax.console import Reporter
from cervseg_jax.curation.prepare import group_problems, prepare
from cervseg_jax.curation.recipe import Recipe
from cervseg_jax.errors import ConfigError, DataError

SIDE = 48
CENTERS = [(12, 12), (34, 12), (20, 34)]


def make(source, out, **options):
    recipe = Recipe(valid=0.25, test=0.25, keep_near_duplicates_together=False, **options)
    return prepare(source, out, recipe, progress=Reporter(quiet=True).progress, is_resumed=lambda: None)


def image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((SIDE, SIDE, 3), 230, np.uint8)
    for center in CENTERS:
        cv2.circle(pixels, center, 6, (120, 60, 110), -1)
    cv2.imencode(".png", pixels)[1].tofile(str(path))


def square(x, y, half=5.5):
    return [[x - half, y - half], [x + half, y - half], [x + half, y + half], [x - half, y + half]]


def labelme(path, shapes, image_path):
    path.parent.mkdir(parents=True, exist_ok=True)
    shapes = [{"label": "nucleus", "shape_type": "polygon", "group_id": None, **shape} for shape in shapes]
    document = {"shapes": shapes, "imagePath": image_path, "imageHeight": SIDE, "imageWidth": SIDE}
    path.write_text(json.dumps(document))


def all_three(**more):
    return [{"points": square(*center), **more} for center in CENTERS]


def label_map(values=(1, 2, 3)):
    labels = np.zeros((SIDE, SIDE), np.uint16)
    for center, value in zip(CENTERS, values, strict=False):
        cv2.circle(labels, center, 6, int(value), -1)
    return labels


def save(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imencode(path.suffix, values)[1].tofile(str(path))


@pytest.fixture
def source(tmp_path):
    """Four images without annotations, in `images`."""
    for index in range(4):
        image(tmp_path / "s" / "images" / f"i{index}.png")
    return tmp_path / "s"


def counts(made):
    return {record.stem: record.num_nuclei for record in made.records}


def test_a_copy_never_replaces_the_file_of_the_images_own_name(source, tmp_path):
    for index in range(4):
        labelme(source / "labelme" / f"i{index}.json", all_three(), f"../images/i{index}.png")
    for copy in ("i2 (1)", "i2-copy", "Copy of i2", "a"):
        labelme(source / "labelme" / f"{copy}.json", all_three()[:1], "../images/i2.png")
    with pytest.raises(DataError, match=r"i2 \(1\).json: i2.png has i2.json already|i2.png has i2.json already"):
        make(source, tmp_path / "d")
    made = make(source, tmp_path / "e", on_bad_file="skip")
    assert counts(made) == dict.fromkeys(["i0", "i1", "i2", "i3"], 3)
    assert len(made.problems) == 4


def test_two_files_that_name_one_image_are_both_named_and_none_is_taken(source, tmp_path):
    for index in range(3):
        labelme(source / "labelme" / f"i{index}.json", all_three(), f"../images/i{index}.png")
    for copy in ("first", "second"):
        labelme(source / "labelme" / f"{copy}.json", all_three()[:1], "i3.png")
    with pytest.raises(DataError, match=r"i3.png: several files name this image \(first.json, second.json\)"):
        make(source, tmp_path / "d")
    (source / "labelme" / "second.json").unlink()
    assert counts(make(source, tmp_path / "e"))["i3"] == 1


def test_files_named_after_the_whole_image_name(source, tmp_path):
    for index in range(4):
        labelme(source / "labelme" / f"i{index}.png.json", all_three(), "")
    assert counts(make(source, tmp_path / "d")) == dict.fromkeys(["i0", "i1", "i2", "i3"], 3)


@pytest.mark.parametrize(("image_form", "label_form"), [("NFD", "NFC"), ("NFC", "NFD"), ("NFD", "NFD")])
@pytest.mark.parametrize("kind", ["masks", "labels", "labelme", "coco"])
def test_names_composed_in_other_ways_pair_up(tmp_path, image_form, label_form, kind):
    source, entries, images = tmp_path / "s", [], []
    for index in range(4):
        name = f"Größe_é{index}"
        stem, other = (unicodedata.normalize(form, name) for form in (image_form, label_form))
        image(source / "images" / f"{stem}.png")
        images.append({"id": index, "file_name": f"{other}.png", "height": SIDE, "width": SIDE})
        entries.append({"image_id": index, "segmentation": [sum(square(*CENTERS[0]), [])]})
        if kind == "labelme":
            labelme(source / kind / f"{other}.json", all_three(), "x.png")
        elif kind != "coco":
            save(source / kind / f"{other}.png", label_map() if kind == "labels" else (label_map() > 0) * np.uint8(255))
    if kind == "coco":
        (source / "c.json").write_text(json.dumps({"images": images, "annotations": entries, "categories": []}))
    made = make(source, tmp_path / "d")
    assert sorted(counts(made)) == [f"Größe_é{index}" for index in range(4)]


def test_two_images_whose_names_differ_in_composition_only_are_refused(source, tmp_path):
    for form in ("NFC", "NFD"):
        image(source / "images" / unicodedata.normalize(form, "é.png"))
    save(source / "masks" / "é.png", label_map())
    with pytest.raises(DataError, match="share a stem"):
        make(source, tmp_path / "d")


def test_a_folder_of_labelme_files_finds_its_images(source, tmp_path):
    for index in range(4):
        labelme(source / "labelme" / f"i{index}.json", all_three(), f"../images/i{index}.png")
    made = make(source / "labelme", tmp_path / "d")
    assert counts(made) == dict.fromkeys(["i0", "i1", "i2", "i3"], 3)
    assert {record.source_path for record in made.records} == {f"../images/i{index}.png" for index in range(4)}


def test_image_paths_of_other_machines_and_other_folders(source, tmp_path):
    (source / "images").rename(tmp_path / "raw")
    names = ["../../raw/i0.png", "..\\..\\raw\\i1.png", "C:\\Users\\me\\i2.png", "i3.png"]
    for index, name in enumerate(names):
        labelme(source / "labelme" / f"i{index}.json", all_three(), name)
    with pytest.raises(DataError, match=r"i2.json: has no image .imagePath is 'C:"):
        make(source / "labelme", tmp_path / "d")
    (source / "images").mkdir()
    for name in ("i2.png", "i3.png"):
        (tmp_path / "raw" / name).rename(source / "images" / name)
    assert counts(make(source / "labelme", tmp_path / "e")) == dict.fromkeys(["i0", "i1", "i2", "i3"], 3)


def test_image_paths_that_climb_too_far_are_not_followed(tmp_path):
    image(tmp_path / "secret.png")
    folder = tmp_path / "a" / "b" / "labelme"
    labelme(folder / "x.json", all_three(), "../../../secret.png")
    labelme(folder / "y.json", all_three(), str(tmp_path / "secret.png"))
    labelme(folder / "z.json", all_three(), "a\0b.png")
    with pytest.raises(ConfigError, match="no image has an annotation"):
        make(folder, tmp_path / "d")


@pytest.mark.parametrize("place", ["images", "geojson", "labelme"])
def test_geojson_named_json_is_known_by_its_content(source, tmp_path, place):
    for index in range(4):
        features = [
            {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [[*ring, ring[0]]]}, "properties": {}}
            for ring in map(lambda center: square(*center), CENTERS)
        ]
        path = source / place / f"i{index}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    made = make(source / "images" if place == "images" else source, tmp_path / "d")
    assert counts(made) == dict.fromkeys(["i0", "i1", "i2", "i3"], 3)


def test_of_several_kinds_of_annotations_the_first_is_taken_and_the_others_named(source, tmp_path):
    for index in range(4):
        labelme(source / "labelme" / f"i{index}.json", all_three()[:2], f"../images/i{index}.png")
        save(source / "labels" / f"i{index}.png", label_map())
        save(source / "masks" / f"i{index}.png", (label_map() > 0) * np.uint8(255))
    made = make(source, tmp_path / "d")
    assert counts(made)["i0"] == 2
    assert made.remarks == [
        "annotations: labelme (labelme); also there: labels (labels), masks (masks); see --annotations"
    ]
    assert counts(make(source, tmp_path / "e", annotations="labels"))["i0"] == 3
    assert counts(make(source, tmp_path / "f", annotations="masks"))["i0"] == -1
    with pytest.raises(ConfigError, match="--annotations: .* has no geojson; there are: labelme, labels, masks"):
        make(source, tmp_path / "g", annotations="geojson")


def test_label_files_are_judged_together(source, tmp_path):
    for index, values in enumerate([(1, 2, 3), (1,), (), (4, 9)]):
        save(source / "labels" / f"i{index}.png", label_map(values))
    assert counts(make(source, tmp_path / "d")) == {"i0": 3, "i1": 1, "i2": 0, "i3": 2}
    assert len(list((tmp_path / "d").glob("*/instances/*.png"))) == 4


def test_masks_in_a_folder_of_labels_stay_masks(source, tmp_path):
    for index in range(4):
        save(source / "labels" / f"i{index}.png", (label_map() > 0) * np.uint8(255))
    made = make(source, tmp_path / "d")
    assert set(counts(made).values()) == {-1}
    assert "its files are masks" in made.remarks[0]
    assert counts(make(source, tmp_path / "e", annotations="labels"))["i0"] == 1


@pytest.mark.parametrize(
    ("folder", "nucleus", "rim", "levels"),
    [
        ("masks", 1, 255, "0, 1, 255"),
        ("labels", 1, 255, "0, 1, 255"),
        ("masks", 255, 128, "0, 128, 255"),
        ("masks", 128, 255, "0, 128, 255"),
    ],
)
def test_masks_with_areas_of_a_third_level_are_refused(source, tmp_path, folder, nucleus, rim, levels):
    for index in range(4):
        mask = np.zeros((SIDE, SIDE), np.uint8)
        for center in CENTERS:
            cv2.circle(mask, center, 8, rim, -1)
            cv2.circle(mask, center, 4, nucleus, -1)
        save(source / folder / f"i{index}.png", mask)
    with pytest.raises(DataError, match=f"a mask with areas of the levels {levels}.*4 times, first in .*i0.png"):
        make(source, tmp_path / "d")
    if nucleus == 1:
        made = make(source, tmp_path / "e", mask_rule="value_1")
        expected = 3 * np.count_nonzero(cv2.circle(np.zeros((SIDE, SIDE), np.uint8), CENTERS[0], 4, 1, -1)) / SIDE**2
        assert made.records[0].foreground == pytest.approx(expected, abs=1e-6)
        assert "the value 1 is nucleus" in made.notes[0]


def test_masks_of_many_levels_are_remarked_on_once(source, tmp_path):
    for index in range(4):
        mask = cv2.GaussianBlur((label_map() > 0) * np.uint8(255), (0, 0), 1)
        save(source / "masks" / f"i{index}.png", mask)
    (note,) = make(source, tmp_path / "d").notes
    assert note.startswith("a mask of more than two levels")
    assert "(4 times, first in " in note


def test_a_label_on_masks_and_on_nothing(source, tmp_path):
    for index in range(4):
        save(source / "masks" / f"i{index}.png", (label_map() > 0) * np.uint8(255))
    with pytest.raises(ConfigError, match="--label: masks have no classes"):
        make(source, tmp_path / "d", labels=("nucleus",))
    for index in range(4):
        labelme(source / "labelme" / f"i{index}.json", [], "")
    with pytest.raises(ConfigError, match="no nucleus has the label 'nucleus'; labels in the source: none"):
        make(source, tmp_path / "e", labels=("nucleus",))


def test_several_classes_are_listed_and_one_can_be_chosen(source, tmp_path):
    for index in range(4):
        shapes = [*all_three(), {"points": square(24, 24, 20), "label": "Cell"}, *all_three(label="Nucleus ")[:1]]
        labelme(source / "labelme" / f"i{index}.json", shapes, "")
    notes = make(source, tmp_path / "d").notes
    assert notes[0] == "the labels 'Nucleus ' and 'nucleus' differ in case or blanks only"
    assert notes[1].startswith(
        "3 labels, and all were taken as nuclei: 'nucleus': 12, 'Cell': 4, 'Nucleus ': 4; --label"
    )
    made = make(source, tmp_path / "e", labels=("nucleus",))
    assert counts(made)["i0"] == 3
    assert made.notes == ["the labels 'Nucleus ' and 'nucleus' differ in case or blanks only"]


def test_coco_entries_that_belong_nowhere_cost_only_themselves(source, tmp_path):
    images = [{"id": index, "file_name": f"i{index}.png", "height": SIDE, "width": SIDE} for index in range(4)]
    good = [{"image_id": i, "segmentation": [sum(square(*center), [])]} for i in range(4) for center in CENTERS]
    bad = [{"id": 70, "image_id": 9, "segmentation": []}, {"id": 71, "image_id": 1, "segmentation": []}]
    (source / "c.json").write_text(json.dumps({"images": images, "annotations": good + bad, "categories": []}))
    with pytest.raises(DataError, match=r"annotation 71 .i1.png.: has no segmentation"):
        make(source, tmp_path / "d")
    made = make(source, tmp_path / "e", on_bad_file="skip")
    assert counts(made) == dict.fromkeys(["i0", "i1", "i2", "i3"], 3)
    assert len(made.problems) == 2


@pytest.mark.parametrize("parts", [1, 2])
def test_our_own_labelme_files_give_the_same_manifest(source, tmp_path, parts):
    holes = {"points": square(20.13, 21.71, 15.377)}, {"points": square(20.4, 21.9, 4.21)[::-1]}
    pieces = {"points": square(8, 8, 5.31)}, {"points": square(30.7, 30, 6.6)}
    for index in range(4):
        shapes = [{**shape, "group_id": 3} for shape in (holes if parts == 1 else pieces)]
        labelme(source / "labelme" / f"i{index}.json", shapes, "")
    make(source, tmp_path / "d")
    back = tmp_path / "back"
    for kind in ("images", "labelme"):
        (back / kind).mkdir(parents=True)
        for path in (tmp_path / "d").glob(f"*/{kind}/*"):
            path.rename(back / kind / path.name)
    again = make(back, tmp_path / "e")
    with (tmp_path / "d" / "manifest.csv").open() as first, (tmp_path / "e" / "manifest.csv").open() as second:
        same = [line.split(",")[:3] + line.split(",")[12:14] for line in first]
        assert same == [line.split(",")[:3] + line.split(",")[12:14] for line in second]
    assert counts(again) == dict.fromkeys(["i0", "i1", "i2", "i3"], 1)


def test_equal_problems_become_one_line():
    lines = group_problems(
        [f"/a/{index}.png: is empty (zero bytes)" for index in range(10)] + ["/b.json: has no image"]
    )
    assert lines == ["is empty (zero bytes) (10 times, first in /a/0.png)", "/b.json: has no image"]


def test_what_a_folder_holds_instead_is_named(source, tmp_path):
    for path in (source / "images").iterdir():
        path.with_suffix(".heic").write_bytes(b"x")
        (source / f"{path.stem}.xml").write_text("<a/>")
    with pytest.raises(ConfigError, match=r"it holds 4 \.xml, the folders images; XML is not read") as caught:
        make(source, tmp_path / "d")
    assert "no supported layout" in str(caught.value)
    with pytest.raises(ConfigError, match="is a file; the folder"):
        make(source / "i0.xml", tmp_path / "d")
    for path in (source / "images").glob("*.png"):
        labelme(source / "labelme" / f"other_{path.stem}.json", all_three(), "nowhere.png")
        path.unlink()
    with pytest.raises(ConfigError, match=r"no image has an annotation \(labelme\)") as caught:
        make(source, tmp_path / "d")
    assert f"{source / 'images'}: left out: 4 .heic" in str(caught.value)


def test_files_that_are_no_images_are_counted(source, tmp_path):
    for index in range(4):
        labelme(source / "labelme" / f"i{index}.json", all_three(), f"i{index}.png")
    (source / "images" / "x.gif").write_bytes(b"x")
    (source / "images" / "Thumbs.db").write_bytes(b"x")
    assert make(source, tmp_path / "d").notes == [f"{source / 'images'}: left out: 1 .gif"]


def test_other_annotation_files_are_named_by_their_program(source, tmp_path):
    region = {"shape_attributes": {"name": "polygon"}, "region_attributes": {}}
    via = {"i0.png9": {"filename": "i0.png", "size": 9, "regions": [region]}}
    for document in (via, {"_via_settings": {}, "_via_img_metadata": via}):
        (source / "images" / "via.json").write_text(json.dumps(document))
        with pytest.raises(ConfigError, match=r"via\.json: is a file of the VGG Image Annotator"):
            make(source / "images", tmp_path / "d")


@pytest.mark.parametrize("ending", ["_mask", "-labels", "_cp_masks", "_Instance"])
def test_endings_that_programs_append_to_names(source, tmp_path, ending):
    for index in range(4):
        save(source / "labels" / f"i{index}{ending}.png", label_map())
    assert counts(make(source, tmp_path / "d")) == dict.fromkeys(["i0", "i1", "i2", "i3"], 3)


def test_outlines_without_a_pixel_are_noted_and_an_empty_dataset_is_refused(source, tmp_path):
    for index in range(4):
        shapes = [{"points": [[x / SIDE, y / SIDE] for x, y in square(*center)]} for center in CENTERS[1:]]
        labelme(source / "labelme" / f"i{index}.json", shapes if index else all_three(), f"i{index}.png")
    (note,) = make(source, tmp_path / "d").notes
    assert note.startswith("covers no pixel (coordinates count pixels) and is left out (6 times")
    labelme(source / "labelme" / "i0.json", shapes, "i0.png")
    with pytest.raises(DataError, match="none of the 8 annotated nuclei covers a pixel of its image"):
        make(source, tmp_path / "e")


def test_a_bow_tie_covers_the_pixels_of_both_halves(source, tmp_path):
    bow_tie = [[10, 10.5], [30, 30], [30, 10.5], [10, 30]]
    for index in range(4):
        labelme(source / "labelme" / f"i{index}.json", [{"points": bow_tie}], f"i{index}.png")
    made = make(source, tmp_path / "d")
    assert made.notes == []
    assert {record.num_nuclei for record in made.records} == {1}
    assert made.records[0].foreground == pytest.approx(200 / SIDE**2, rel=0.11)


def test_a_nucleus_of_more_than_half_the_image_is_noted(source, tmp_path):
    for index in range(4):
        save(source / "labels" / f"i{index}.png", label_map() + 1)  # the background has a label, too
    (note,) = make(source, tmp_path / "d").notes
    assert note.startswith("a nucleus that covers more than half of its image")
    assert "4 times" in note


@pytest.mark.parametrize(
    ("value", "message"), [(0, "no image has a nucleus"), (255, "a mask that marks the whole image")]
)
def test_masks_of_one_level(source, tmp_path, value, message):
    for index in range(4):
        save(source / "masks" / f"i{index}.png", np.full((SIDE, SIDE), value, np.uint8))
    (note,) = make(source, tmp_path / "d").notes
    assert note.startswith(message)


def test_groups_of_images_outside_of_the_source(source, tmp_path):
    for index in range(4):
        labelme(source / "labelme" / f"i{index}.json", all_three(), f"../images/i{index}.png")
    table = tmp_path / "groups.csv"
    table.write_text("Image;Patient;age\r\n" + "".join(f"i{index}.PNG;p{index};3,5\r\n" for index in range(4)))
    made = make(source / "labelme", tmp_path / "d", groups_csv=table)
    assert sorted(record.group for record in made.records) == ["p0", "p1", "p2", "p3"]
    assert "3,5" in (tmp_path / "d" / "manifest.csv").read_text()


def test_images_turned_by_their_exif_tag_are_noted(source, tmp_path):
    for path in list((source / "images").iterdir()):
        exif = Image.Exif()
        exif[0x112] = 6
        with Image.open(path) as picture:
            picture.save(path.with_suffix(".jpg"), exif=exif, quality=95)
        path.unlink()
        save(source / "masks" / path.name, (label_map() > 0).astype(np.uint8) * 255)
    notes = make(source, tmp_path / "d").notes
    assert any("is turned upright by its EXIF tag" in note for note in notes)
    save(source / "masks" / "i0.png", (label_map()[:40] > 0).astype(np.uint8))
    with pytest.raises(DataError, match=r"is for an image of 48x40, i0\.jpg is 48x48 \(turned upright"):
        make(source, tmp_path / "e")


def test_a_picture_within_a_labelme_file_is_pointed_out(tmp_path):
    labelme(tmp_path / "s" / "x.json", all_three(), "x.png")
    document = json.loads((tmp_path / "s" / "x.json").read_text())
    (tmp_path / "s" / "x.json").write_text(json.dumps(document | {"imageData": "aGVsbG8="}))
    with pytest.raises(ConfigError, match=r"has no image \(imagePath is 'x\.png'; its imageData holds the picture"):
        make(tmp_path / "s", tmp_path / "d")
