"""Rules by which annotated objects become nuclei, on documents as QuPath, COCO and LabelMe write them."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from cervseg_jax.annotations.coco import read_coco
from cervseg_jax.annotations.nuclei import has_label, missing_label_message, select_nuclei
from cervseg_jax.annotations.outlines import draw_instances, enclosed_area, follows_pixel_centers, join_parts, trace
from cervseg_jax.annotations.reader import read_annotation


def square(left, top, side):
    return [[left, top], [left + side, top], [left + side, top + side], [left, top + side]]


def closed(points):
    return [*points, points[0]]


def feature(points, kind="detection", name=None, **more):
    properties = {"objectType": kind}
    if name is not None:
        properties["classification"] = {"name": name}
    geometry = {"type": "Polygon", "coordinates": [closed(points)]}
    return {"type": "Feature", "geometry": geometry, "properties": properties, **more}


def cell(points, nucleus=None, **more):
    geometry = None if nucleus is None else {"type": "Polygon", "coordinates": [closed(nucleus)]}
    return feature(points, "cell", nucleusGeometry=geometry, **more)


def qupath(*features, **options):
    document = {"type": "FeatureCollection", "features": list(features)}
    annotation = read_annotation(json.dumps(document).encode(), source=Path("q.geojson"))
    return select_nuclei(annotation, **options)


def shape(points, group=None, label="nucleus", kind="polygon"):
    return {"label": label, "points": points, "group_id": group, "shape_type": kind}


def labelme(*shapes):
    return select_nuclei(read_annotation(json.dumps({"shapes": list(shapes)}).encode(), source=Path("l.json")))


def areas(selection):
    return [enclosed_area(nucleus.rings) for nucleus in selection.nuclei]


def notes(selection):
    return " | ".join(map(str, selection.notes))


def test_the_nucleus_of_a_cell_is_its_nucleus_geometry():
    selection = qupath(cell(square(0, 0, 20), square(5, 5, 8)), cell(square(30, 0, 20), square(35, 5, 6)))
    assert areas(selection) == [64, 36]
    assert "nucleus is taken from its nucleusGeometry, not the cell's border (2 times, first in q" in notes(selection)


def test_cells_without_a_nucleus_are_left_out_beside_others_and_kept_alone():
    mixed = qupath(cell(square(0, 0, 20), square(5, 5, 8)), cell(square(30, 0, 20)))
    assert areas(mixed) == [64]
    assert "q.geojson: feature 2: a cell without a nucleusGeometry is left out" in notes(mixed)
    alone = qupath(cell(square(0, 0, 20)), cell(square(30, 0, 20)))
    assert areas(alone) == [400, 400]
    assert "the cell's border is taken as the nucleus (2 times" in notes(alone)


def test_old_files_name_the_type_in_the_id():
    old = feature(square(0, 0, 90), id="PathAnnotationObject")
    del old["properties"]["objectType"]
    spot = feature(square(5, 5, 8), id="PathDetectionObject")
    del spot["properties"]["objectType"]
    assert areas(qupath(old, spot)) == [64]
    assert areas(qupath({**old, "properties": {"object_type": "annotation"}}, spot)) == [64]


@pytest.mark.parametrize("name", [None, "Tumor", "Region"])
def test_annotations_around_detections_are_regions(name):
    spots = [feature(square(x, 10, 8), name="Tumor") for x in (10, 30, 50)]
    selection = qupath(feature(square(0, 0, 90), "annotation", name), *spots)
    assert areas(selection) == [64, 64, 64]
    assert "q.geojson: feature 1: an annotation that contains detections is a region" in notes(selection)


def test_an_annotated_nucleus_beside_detections_stays():
    selection = qupath(feature(square(10, 10, 8)), feature(square(40, 40, 9), "annotation"))
    assert areas(selection) == [64, 81]
    assert notes(selection) == ""


def test_regions_without_detections_are_told_by_their_content():
    nuclei = [feature(square(x, 10, 8), "annotation", "Nucleus") for x in (10, 30, 50)]
    for name in (None, "Field", "Nucleus"):
        selection = qupath(feature(square(0, 0, 90), "annotation", name), *nuclei)
        assert areas(selection) == [64, 64, 64]
        assert "contains other annotations is a region" in notes(selection)
    cytoplasm = qupath(feature(square(5, 5, 20), "annotation", "Cytoplasm"), nuclei[0])
    assert areas(cytoplasm) == [400, 64]  # one nucleus in it: a cell, not a region
    nucleus = feature([[2, 0], [38, 2], [40, 40], [0, 38]], "annotation")
    nucleolus = feature(square(10, 10, 8), "annotation")
    assert len(areas(qupath(nucleus, nucleolus))) == 2
    assert areas(qupath(feature(square(0, 0, 40), "annotation"), nucleolus)) == [64]  # a rectangle: the region


def test_tiles_cores_and_ignored_classes_are_left_out():
    selection = qupath(
        feature(square(0, 0, 50), "tile"),
        feature(square(0, 0, 50), "TMA_core"),
        feature(square(60, 0, 9), "annotation", "Ignore*"),
        feature(square(60, 20, 8), "annotation", "Nucleus"),
    )
    assert areas(selection) == [64]
    assert "a tile is not a nucleus" in notes(selection)
    assert "the class 'Ignore*', which QuPath ignores, is left out" in notes(selection)


@pytest.mark.parametrize(
    "classification",
    [{"name": "Tumor: Positive"}, {"names": ["Tumor", "Positive"]}, "Tumor: Positive"],
)
def test_derived_classes_keep_all_their_parts(classification):
    derived = feature(square(0, 0, 8))
    derived["properties"]["classification"] = classification
    stroma = feature(square(20, 0, 9), name="Stroma")
    assert qupath(derived, stroma).label_counts == {"Tumor: Positive": 1, "Stroma": 1}
    assert areas(qupath(derived, stroma, labels=("Tumor",))) == [64]
    assert areas(qupath(derived, stroma, labels=("Tumor: Positive",))) == [64]
    assert areas(qupath(derived, stroma, labels=("Tumor: Negative",))) == []


def test_labels_match_whole_names_only():
    assert has_label("Tumor", "Tumor")
    assert not has_label("Tumorous", "Tumor")
    assert not has_label("tumor", "Tumor")


@pytest.mark.parametrize(
    ("wanted", "near"),
    [("nuclei", "'Nuclei '"), ("NUCLEI", "'Nuclei '"), ("positive", "'Tumor: Positive'"), ("Cytoplazm", "'Cytoplasm'")],
)
def test_a_label_that_matches_nothing_names_near_misses_and_all_labels(wanted, near):
    counts = {"Nuclei ": 7, "Cytoplasm": 5, "Tumor: Positive": 2, "": 1}
    message = missing_label_message(wanted, counts)
    assert f"no nucleus has the label {wanted!r} (did you mean {near}?)" in message
    assert message.endswith("'Nuclei ': 7, 'Cytoplasm': 5, 'Tumor: Positive': 2, (no label): 1")
    assert "did you mean" not in missing_label_message("zebra", counts)


def test_shapes_of_one_group_are_one_nucleus():
    selection = labelme(
        shape(square(0, 0, 4), 1), shape(square(10, 0, 4), 1), shape(square(20, 0, 4), 2), shape(square(30, 0, 4))
    )
    assert areas(selection) == [32, 16, 16]
    assert "l.json: shape 1: shapes of equal label and group_id are joined" in notes(selection)


def test_groups_join_shapes_of_one_label_only_and_may_have_names():
    selection = labelme(
        shape(square(0, 0, 4), 1, "cell"),
        shape(square(1, 1, 2), 1),
        shape(square(8, 0, 4), "a"),
        shape(square(9, 9, 2), "a"),
    )
    assert areas(selection) == [16, 4, 20]


def test_a_ring_within_another_of_its_group_is_a_hole_whatever_its_direction():
    for hole in (square(3, 3, 4), square(3, 3, 4)[::-1]):
        selection = labelme(shape(square(0, 0, 10), 1), shape(hole, 1))
        assert areas(selection) == [84]
        labels = draw_instances([selection.nuclei[0].rings], shape=(12, 12))
        assert (labels > 0).sum() == 84
        assert labels[5, 5] == 0


def test_parts_that_overlap_are_united_and_do_not_cancel():
    for parts in ([square(0, 0, 10), square(6, 2, 10)], [square(0, 0, 10), square(0, 0, 10)]):
        rings = join_parts([np.array(part, float) for part in parts])
        labels = draw_instances([rings], shape=(20, 20))
        expected = np.zeros((20, 20), bool)
        for (left, top), _, (right, bottom), _ in parts:
            expected[top:bottom, left:right] = True
        np.testing.assert_array_equal(labels > 0, expected)


def test_an_island_in_a_hole_survives():
    rings = join_parts([np.array(square(*box), float) for box in ((8, 8, 4), (0, 0, 20), (4, 4, 12))])
    assert enclosed_area(rings) == 400 - 144 + 16
    assert (draw_instances([rings], shape=(20, 20)) > 0).sum() == 400 - 144 + 16


def coco(*entries):
    images = [{"id": 1, "file_name": "a.png", "height": 40, "width": 40}]
    annotations = [{"id": index, "image_id": 1, **entry} for index, entry in enumerate(entries)]
    document = {"images": images, "categories": [], "annotations": annotations}
    (annotation,), _ = read_coco(json.dumps(document).encode(), source=Path("c.json"))
    return annotation


def polygon(left, top, side, crowd=0):
    return {"segmentation": [[value for point in square(left, top, side) for value in point]], "iscrowd": crowd}


def test_crowds_are_left_out_kept_on_request_and_never_silent():
    annotation = coco(polygon(0, 0, 4), polygon(10, 10, 20, crowd=1))
    dropped = select_nuclei(annotation)
    assert areas(dropped) == [16]
    assert "a crowd (iscrowd: 1) of nuclei that are not separated is left out; see --crowd" in notes(dropped)
    kept = select_nuclei(annotation, crowd="keep")
    assert areas(kept) == [16, 400]
    assert "is kept as one nucleus" in notes(kept)


def test_a_crowd_flag_on_every_entry_means_nothing():
    selection = select_nuclei(coco(polygon(0, 0, 4, crowd=1), polygon(10, 10, 5, crowd=1)))
    assert areas(selection) == [16, 25]
    assert "iscrowd is 1 in every entry of the file" in notes(selection)


def test_outlines_through_pixel_centers_are_told_from_edges_and_drawn_ones():
    disc = np.hypot(*np.mgrid[-9:10, -9:10]) < 8
    contour = cv2.findContours(disc.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0][0][:, 0]
    assert follows_pixel_centers([contour.astype(float)])
    assert not follows_pixel_centers(trace(disc))  # our own exports: whole numbers along pixel edges
    assert not follows_pixel_centers([np.array(square(3, 4, 9), float)])  # a rectangle
    assert not follows_pixel_centers([np.array([[0, 0], [7, 3], [9, 9], [2, 6.0]])])  # clicked on whole pixels
    assert not follows_pixel_centers([contour + 0.5])


def test_thousands_of_annotations_are_all_kept():
    rng = np.random.default_rng(0)
    spots = [feature(square(int(x), int(y), 8), "annotation") for x, y in rng.integers(0, 20_000, (2000, 2))]
    assert len(qupath(*spots).nuclei) == 2000
