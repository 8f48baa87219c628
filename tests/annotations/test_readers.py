import base64
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from skimage.draw import polygon2mask

from cervseg_jax.annotations.coco import read_coco
from cervseg_jax.annotations.labelme import LabeledOutline, labelme_document
from cervseg_jax.annotations.outlines import enclosed_area, from_pixel_centers, rasterize, trace
from cervseg_jax.annotations.reader import read_annotation
from cervseg_jax.errors import DataError
from tests.helpers import SHARED


def whole(rings, shape):
    top, left, inside = rasterize(rings, shape=shape)
    mask = np.zeros(shape, bool)
    mask[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
    return mask


def random_blobs(seed, shape=(24, 30)):
    noise = cv2.GaussianBlur(np.random.default_rng(seed).normal(size=shape), (0, 0), 1.2)
    return noise > 0.1


@pytest.mark.parametrize("seed", range(30))
def test_tracing_and_rasterizing_gives_the_mask_back(seed):
    mask = random_blobs(seed)  # holes and pixels that meet at a corner included
    rings = trace(mask)
    np.testing.assert_array_equal(whole(rings, mask.shape), mask)
    assert enclosed_area(rings) == mask.sum()
    for ring in rings:
        steps = np.abs(np.roll(ring, -1, axis=0) - ring)
        assert ((steps == 0).sum(axis=1) == 1).all()  # along pixel edges, corners only
        assert len(np.unique(ring, axis=0)) == len(ring)  # never through the same corner twice


def test_tracing_has_an_offset_and_survives_emptiness():
    assert trace(np.zeros((3, 3), bool)) == []
    assert trace(np.ones((1, 1), bool), top=5, left=7)[0].tolist() == [[7, 5], [8, 5], [8, 6], [7, 6]]


@pytest.mark.parametrize("seed", range(10))
def test_contours_through_pixel_centers_come_back_exactly(seed):
    mask = random_blobs(seed)
    for contour in cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]:
        want = np.zeros(mask.shape, np.uint8)
        cv2.fillPoly(want, [contour], 1)
        np.testing.assert_array_equal(whole(from_pixel_centers(contour[:, 0]), mask.shape), want > 0)


def labelme(*shapes, **more):
    document = {"shapes": list(shapes), "imagePath": "a.png", "imageHeight": 40, "imageWidth": 50, **more}
    return json.dumps(document).encode()


def shape(kind, points, **more):
    return {"label": "nucleus", "shape_type": kind, "points": points, **more}


def read(data):
    return read_annotation(data, source=Path("x.json"))


@pytest.mark.parametrize(
    ("kind", "points", "area"),
    [
        ("polygon", [[1, 1], [11, 1], [11, 21], [1, 21]], 200),
        ("rectangle", [[11, 21], [1, 1]], 200),
        ("circle", [[20, 20], [20, 30]], np.pi * 100),
        ("ellipse", [[10, 10], [30, 20]], np.pi * 10 * 5),
        ("ellipse", [[20, 20], [30, 20], [20, 25]], np.pi * 10 * 5),
        ("oriented_rectangle", [[10, 0], [20, 10], [10, 20], [0, 10]], 200),
    ],
)
def test_labelme_shapes_have_their_area(kind, points, area):
    (nucleus,) = read(labelme(shape(kind, points))).objects
    assert enclosed_area(nucleus.rings) == pytest.approx(area, rel=1e-6)


def test_labelme_mask_shape_is_exact():
    mask = random_blobs(3)
    _, packed = cv2.imencode(".png", mask.astype(np.uint8))
    text = base64.b64encode(packed.tobytes()).decode()
    (nucleus,) = read(labelme(shape("mask", [[4, 6], [33, 29]], mask=text))).objects
    want = np.zeros((40, 50), bool)
    want[6:30, 4:34] = mask
    np.testing.assert_array_equal(whole(nucleus.rings, (40, 50)), want)


def test_labelme_shapes_without_area_are_noted():
    annotation = read(
        labelme(
            shape("point", [[1, 1]]),
            shape("line", [[1, 1], [2, 2]]),
            shape("circle", [[9, 9], [9, 12]]),
            shape("polygon", [[1, 1], [2, 2]]),
            shape("polygon", [[1, 1]]),
            shape("polygon", []),
            shape("rectangle", [[1, 1]]),
            shape("point", [[3, 1]]),
        )
    )
    assert len(annotation.objects) == 1
    assert annotation.problems == []
    assert [str(note) for note in annotation.notes] == [
        "a point has no area and is left out (2 times, first in x.json: shape 1)",
        "x.json: shape 2: a line has no area and is left out",
        "x.json: shape 4: a polygon of 2 points has no area and is left out",
        "x.json: shape 5: a polygon of 1 point has no area and is left out",
        "x.json: shape 6: a polygon of 0 points has no area and is left out",
        "x.json: shape 7: a rectangle of 1 point has no area and is left out",
    ]
    assert annotation.size == (40, 50)


def test_our_labelme_files_read_back():
    outlines = [trace(random_blobs(seed)) for seed in (1, 2)]
    single = [rings for several in outlines for rings in ([ring] for ring in several)]
    document = labelme_document(
        [LabeledOutline(rings) for rings in single], image_path="../images/a.png", shape=(24, 30)
    )
    annotation = read(document.encode())
    assert annotation.image_name == "a.png"
    assert len(annotation.objects) == len(single)
    for nucleus, rings in zip(annotation.objects, single, strict=True):
        np.testing.assert_array_equal(nucleus.rings[0], rings[0])


def test_windows_paths_and_climbing_paths_name_a_file_only():
    assert read(labelme(imagePath="..\\..\\secret\\a.png")).image_name == "a.png"
    assert read(labelme(imagePath="/etc/passwd")).image_name == "passwd"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not valid JSON"),
        (b"{", "is not valid JSON"),
        (b"\xff\xff{}", "is not text in UTF-8 or UTF-16"),
        (b"[" * 100000, "is nested too deeply|not valid JSON"),
        (b"[]", "is neither LabelMe JSON"),
        (b"{}", "is neither LabelMe JSON"),
        (b'{"shapes": 3}', "is neither LabelMe JSON"),
    ],
)
def test_broken_labelme_files_are_one_message(data, message):
    with pytest.raises(DataError, match=message) as caught:
        read(data)
    assert str(caught.value).startswith("x.json")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (3, "is not an object"),
        (shape("polygon", None), "its points are not a list"),
        (shape("polygon", [[1, 1], [2, "x"], [3, 3]]), "its points are not a list"),
        (shape("polygon", [[1, 1], [2], [3, 3]]), "its points are not a list"),
        (shape("polygon", [[1, 1], [2, True], [3, 3]]), "its points are not a list"),
        (shape("polygon", [[1, 1], [1e300, 2], [3, 3]]), "has a coordinate beyond"),
        (shape("polygon", [[1, 1], [10**400, 2], [3, 3]]), "has a coordinate beyond"),
        (shape("star", [[1, 1], [2, 2], [3, 3]]), "unknown shape_type 'star'"),
        (shape([[1, 2]], [[1, 1], [2, 2], [3, 3]]), "unknown shape_type [[1, 2]]"),
        (shape("mask", [[1, 1], [2, 2]], mask="***"), "its mask is not base64"),
        (shape("mask", [[1, 1], [2, 2]], mask="aGVsbG8="), "its mask: is not a PNG"),
        (shape("mask", [[1, 1], [2, 2]]), "its mask is not base64"),
        (shape("mask", []), "its mask has no position"),
    ],
)
def test_a_broken_labelme_shape_costs_that_shape(entry, message):
    good = shape("rectangle", [[1, 1], [5, 5]])
    annotation = read(labelme(good, entry, good))
    assert len(annotation.objects) == 2
    (problem,) = annotation.problems
    assert problem.startswith("x.json: shape 2")
    assert message in problem


def test_infinite_numbers_in_exponent_form_cost_the_shape():
    annotation = read(b'{"shapes": [{"shape_type": "polygon", "points": [[1, 1e999], [2, 2], [3, 1]]}]}')
    assert "has a coordinate beyond" in annotation.problems[0]


def coco(**more):
    document = {
        "images": [{"id": 1, "file_name": "deep/a.png", "height": 20, "width": 30}],
        "categories": [{"id": 7, "name": "nucleus"}],
        "annotations": [],
        **more,
    }
    return json.dumps(document).encode()


def entry(segmentation, image_id=1):
    return {"image_id": image_id, "category_id": 7, "segmentation": segmentation}


def compress(counts):
    """COCO's text form, by the description of its format."""
    text = ""
    for index, count in enumerate(counts):
        value = count - (counts[index - 2] if index > 2 else 0)
        while True:
            bits = value & 0x1F
            value >>= 5
            more = value != -1 if bits & 0x10 else value != 0
            text += chr(bits + (0x20 if more else 0) + 48)
            if not more:
                break
    return text


@pytest.mark.parametrize("compressed", [False, True])
def test_coco_masks_and_polygons(compressed):
    mask = random_blobs(5, (20, 30))
    flat = mask.T.ravel()
    changes = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *changes, flat.size]).tolist()
    counts = [0, *counts] if flat[0] else counts
    segmentation = {"size": [20, 30], "counts": compress(counts) if compressed else counts}
    polygon = [[2.5, 3.0, 12.0, 3.5, 9.0, 15.0]]
    (annotation,), _ = read_coco(coco(annotations=[entry(segmentation), entry(polygon)]), source=Path("c.json"))
    assert annotation.image_name == "a.png"
    assert annotation.size == (20, 30)
    np.testing.assert_array_equal(whole(annotation.objects[0].rings, (20, 30)), mask)
    points = np.array(polygon[0]).reshape(-1, 2)
    independent = polygon2mask((20, 30), points[:, ::-1] - 0.5)
    assert (whole(annotation.objects[1].rings, (20, 30)) != independent).sum() <= 2
    assert annotation.objects[0].label == "nucleus"


@pytest.mark.parametrize(
    ("second", "is_hole"),
    [
        ([4, 4, 4, 8, 8, 8, 8, 4], True),
        ([4, 4, 8, 4, 8, 8, 4, 8], True),
        ([14, 4, 14, 8, 18, 8, 18, 4], False),
        ([8, 4, 8, 8, 16, 8, 16, 4], False),
    ],
)
def test_a_polygon_within_another_one_of_its_coco_entry_is_said_to_be_a_hole(second, is_hole):
    first = [2.0, 2, 12, 2, 12, 12, 2, 12]
    for polygons in ([first, second], [second, first]):
        (annotation,), _ = read_coco(coco(annotations=[entry(polygons)]), source=Path("c.json"))
        assert [note.message.startswith("a polygon within another one") for note in annotation.notes] == [
            True
        ] * is_hole
        expected = {4: 84, 14: 116, 8: 116}[second[0]]
        assert whole(annotation.objects[0].rings, (20, 30)).sum() == expected


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (entry([[1, 2, 3]]), "annotation 5 (a.png): its polygon is not a list of x, y"),
        (entry([]), "annotation 5 (a.png): has no segmentation"),
        (entry(None), "annotation 5 (a.png): has no segmentation"),
        (entry([[5, 5, 9, 9]]), "annotation 5 (a.png): has 2 points, at least 3 are needed"),
        (entry({"size": [2, 2], "counts": [1, 2]}), "add up to 3 pixels, its size has 4"),
        (entry({"counts": [1, 2]}), "its mask has no size"),
        (entry({"size": [2, 2], "counts": [4]}), "its mask is empty"),
        (entry([[1, 2, 3, 4, 5, 6]], image_id=9), "annotation 5: belongs to no image of the file (image_id 9)"),
        (entry([[1, 2, 3, 4, 5, 6]], image_id=[1]), "annotation 5: belongs to no image of the file (image_id [1])"),
        ("x", "annotation no. 2: belongs to no image"),
    ],
)
def test_a_broken_coco_entry_costs_that_entry(bad, message):
    good = entry([[2.5, 3.0, 12.0, 3.5, 9.0, 15.0]])
    bad = {**bad, "id": 5} if isinstance(bad, dict) else bad
    (annotation,), problems = read_coco(coco(annotations=[good, bad, good]), source=Path("c.json"))
    assert len(annotation.objects) == 2
    (problem,) = annotation.problems + problems
    assert problem.startswith("c.json: ")
    assert message in problem


def test_coco_images_without_name_or_with_a_taken_id_are_named():
    images = [{"id": 1, "file_name": "a.png"}, {"id": 2}, {"id": 1, "file_name": "b.png"}]
    (annotation,), problems = read_coco(coco(images=images), source=Path("c.json"))
    assert annotation.image_name == "a.png"
    assert problems == [
        "c.json: image no. 2 has no file_name",
        "c.json: image no. 3 (b.png) has the id of another image",
    ]
    with pytest.raises(DataError, match="is not a COCO file"):
        read_coco(b"[]", source=Path("c.json"))


def test_a_polygon_without_area_among_others_costs_that_polygon():
    segmentation = [[2, 3, 12, 3, 12, 13, 2, 13], [5, 5, 9, 9]]
    (annotation,), _ = read_coco(coco(annotations=[entry(segmentation)]), source=Path("c.json"))
    assert enclosed_area(annotation.objects[0].rings) == 100
    assert "a polygon of 2 points has no area" in str(annotation.notes[0])


def geojson(*features):
    return json.dumps({"type": "FeatureCollection", "features": list(features)}).encode()


def feature(kind, coordinates):
    return {
        "type": "Feature",
        "properties": {"classification": {"name": "Tumor"}},
        "geometry": {"type": kind, "coordinates": coordinates},
    }


def test_geojson_holes_and_parts():
    ring = [[0, 0], [10, 0], [10, 10], [0, 10], [0, 0]]
    hole = [[2, 2], [2, 6], [6, 6], [6, 2], [2, 2]]
    other = [[20, 20], [24, 20], [24, 24], [20, 24], [20, 20]]
    collection = {"type": "GeometryCollection", "geometries": [{"type": "Polygon", "coordinates": [other]}]}
    data = geojson(
        feature("Polygon", [ring, hole]),
        feature("MultiPolygon", [[ring], [other]]),
        feature("Point", [1, 1]),
        {**feature("Point", [1, 1]), "geometry": collection},
    )
    annotation = read_annotation(data, source=Path("g.geojson"))
    areas = [whole(nucleus.rings, (40, 40)).sum() for nucleus in annotation.objects]
    assert areas == [100 - 16, 100 + 16, 16]
    assert annotation.objects[0].label == "Tumor"
    assert str(annotation.notes[0]) == "g.geojson: feature 3: a Point has no area and is left out"


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({}, "has no geometry"),
        (7, "is not an object"),
        (feature("Polygon", 5), "not lists of rings"),
        (feature("Polygon", []), "has no ring"),
        (feature("Polygon", [[[0, 0], [1, "1"], [2, 2]]]), "its points are not a list"),
    ],
)
def test_a_broken_geojson_feature_costs_that_feature(bad, message):
    good = feature("Polygon", [[[0, 0], [10, 0], [10, 10], [0, 0]]])
    annotation = read_annotation(geojson(good, bad, good), source=Path("g.geojson"))
    assert len(annotation.objects) == 2
    (problem,) = annotation.problems
    assert problem.startswith("g.geojson: feature 2: ")
    assert message in problem


def test_geojson_rings_of_two_points_are_noted_and_other_documents_refused():
    annotation = read_annotation(geojson(feature("Polygon", [[[0, 0], [1, 1]]])), source=Path("g.geojson"))
    assert annotation.objects == []
    assert "a ring of 2 points has no area" in str(annotation.notes[0])
    with pytest.raises(DataError, match="is not GeoJSON"):
        read_annotation(b'{"type": "FeatureCollection"}', source=Path("g.geojson"))


def test_a_file_is_known_by_its_content():
    one = feature("Polygon", [[[0, 0], [10, 0], [10, 10], [0, 0]]])
    for data in (geojson(one), json.dumps([one]).encode(), json.dumps(one).encode()):
        assert len(read_annotation(data, source=Path("x.json")).objects) == 1
    assert len(read_annotation(labelme(shape("circle", [[9, 9], [9, 12]])), source=Path("x.geojson")).objects) == 1
    with pytest.raises(DataError, match="is a COCO file of several images"):
        read_annotation(coco(), source=Path("x.json"))
    with pytest.raises(DataError, match="neither LabelMe JSON"):
        read_annotation(b'{"a": 1}', source=Path("x.json"))


def test_round_trip_on_real_outlines_that_were_traced_through_pixel_centers():
    folder = SHARED / "data" / "dsb2018_stained"
    if not folder.is_dir():
        pytest.skip("the real images are not on this machine")
    errors, shrunk = [], []
    for path in sorted((folder / "labelme").glob("*.json"))[:15]:
        labels = cv2.imread(str(folder / "labels" / f"{path.stem}.png"), cv2.IMREAD_UNCHANGED)
        for nucleus in read_annotation(path.read_bytes(), source=path).objects:
            made = whole(from_pixel_centers(nucleus.rings[0]), labels.shape)
            truth = labels == np.bincount(labels[made]).argmax()
            errors.append((made != truth).sum() / truth.sum())
            shrunk.append(whole(nucleus.rings, labels.shape).sum() / truth.sum() - 1)
    assert len(errors) > 300
    assert max(errors) < 0.02
    assert np.mean(shrunk) < -0.05  # what taking the numbers for positions would cost


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
def test_json_in_the_encodings_of_windows_programs(encoding):
    document = {"shapes": [{"label": "Zellkern groß", "points": [[1, 1], [9, 1], [9, 9]]}]}
    (entry,) = read(json.dumps(document, ensure_ascii=False).encode(encoding)).objects
    assert entry.label == "Zellkern groß"


def test_nan_outside_of_outlines_does_no_harm():
    text = '{"type": "FeatureCollection", "features": [{"type": "Feature", "properties": {"measurements": {"a": NaN}}, '
    text += '"geometry": {"type": "Polygon", "coordinates": [[[1, 1], [9, 1], [9, 9], [1, 1]]]}}]}'
    annotation = read(text.encode())
    assert len(annotation.objects) == 1
    assert annotation.problems == []


def test_coco_ids_as_numbers_and_as_text_are_equal():
    entry = {"id": 1, "segmentation": [[1, 1, 9, 1, 9, 9]], "image_id": "7", "category_id": 3.0}
    document = {
        "images": [{"id": 7, "file_name": "a.png"}],
        "annotations": [entry],
        "categories": [{"id": "3", "name": "nucleus"}],
    }
    (annotation,), problems = read_coco(json.dumps(document).encode(), source=Path("x.json"))
    assert problems == []
    assert [item.label for item in annotation.objects] == ["nucleus"]
