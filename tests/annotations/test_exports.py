"""Exports, read back by other programs or by our own readers."""

import json
from pathlib import Path

import numpy as np
import pytest
import roifile
import shapely
from scipy.ndimage import gaussian_filter, label

from cervseg_jax.annotations.coco import coco_annotations, coco_document, coco_image, read_coco
from cervseg_jax.annotations.geojson import geojson_document
from cervseg_jax.annotations.imagej import roi_zip
from cervseg_jax.annotations.labelme import labelme_with_masks, path_from
from cervseg_jax.annotations.outlines import draw_instances
from cervseg_jax.annotations.polygons import Polygon, polygons_of
from cervseg_jax.annotations.reader import read_annotation
from cervseg_jax.segmentation.instances import relabel
from cervseg_jax.segmentation.morphometry import measure


@pytest.fixture
def labels(rng):
    """Ragged nuclei with holes, and some whose pixels meet at corners alone."""
    found, _ = label(gaussian_filter(rng.random((90, 120)), 2.5) > 0.5, np.ones((3, 3)))
    found[rng.random(found.shape) < 0.02] = 0
    found[:12, :12] = 0
    found[2:5, 2:5] = found[5:8, 5:8] = found.max() + 1
    found[10, 10] = found.max() + 1
    return relabel(found)


@pytest.fixture
def table(labels, rng):
    image = rng.integers(0, 256, (*labels.shape, 3), np.uint8)
    return measure(labels, image, probs=np.full(labels.shape, 0.9))


def test_geojson_is_valid_and_exact(labels, table):
    text = "".join(geojson_document("slide 1", polygons_of(labels), table))
    document = json.loads(text)
    assert document["type"] == "FeatureCollection"
    assert len(document["features"]) == labels.max()
    assert len({feature["id"] for feature in document["features"]}) == labels.max()
    kinds = set()
    for row, feature in enumerate(document["features"]):
        geometry = shapely.geometry.shape(feature["geometry"])
        assert geometry.is_valid, shapely.is_valid_reason(geometry)
        assert geometry.area == table["area_px"][row]
        kinds.add(geometry.geom_type)
        parts = feature["geometry"]["coordinates"]
        rings = parts if geometry.geom_type == "Polygon" else [ring for part in parts for ring in part]
        assert all(ring[0] == ring[-1] and len(ring) >= 5 for ring in rings)
        assert geometry.geom_type == "Polygon" or len(geometry.geoms) > 1
        properties = feature["properties"]
        assert properties["objectType"] == "detection"
        assert properties["classification"]["name"] == "nucleus"
        assert properties["measurements"]["area_px"] == table["area_px"][row]
    assert kinds == {"Polygon", "MultiPolygon"}
    assert any(
        len(shapely.geometry.shape(f["geometry"]).interiors)
        for f in document["features"]
        if "Multi" not in f["geometry"]["type"]
    )
    nuclei = read_annotation(text.encode(), source=Path("x.geojson")).objects
    np.testing.assert_array_equal(draw_instances([n.rings for n in nuclei], shape=labels.shape), labels)


def test_equal_images_give_equal_ids(labels, table):
    one, again = ("".join(geojson_document("a", polygons_of(labels), table)) for _ in range(2))
    assert one == again
    assert "".join(geojson_document("b", polygons_of(labels), table)) != one


def test_labelme_round_trip_is_exact(labels, table):
    text = "".join(labelme_with_masks(labels, polygons_of(labels), table, image_path="../images/a.png"))
    annotation = read_annotation(text.encode(), source=Path("a.json"))
    assert {shape["shape_type"] for shape in json.loads(text)["shapes"]} == {"polygon", "mask"}
    assert annotation.size == labels.shape
    np.testing.assert_array_equal(draw_instances([n.rings for n in annotation.objects], shape=labels.shape), labels)


def test_coco_round_trip_is_exact(labels, table):
    entries = list(coco_annotations(labels, table, image_id=7, first_id=3))
    text = "".join(coco_document([coco_image(7, "a.png", labels.shape)], entries))
    (annotation,), _ = read_coco(text.encode(), source=Path("a.json"))
    np.testing.assert_array_equal(draw_instances([n.rings for n in annotation.objects], shape=labels.shape), labels)
    assert [entry["id"] for entry in entries] == list(range(3, 3 + labels.max()))
    assert [entry["area"] for entry in entries] == table["area_px"].tolist()
    x, y, width, height = entries[0]["bbox"]
    rows, columns = np.nonzero(labels == 1)
    assert (x, y, width, height) == (columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1)


def test_imagej_regions_are_read_by_another_program(labels, tmp_path):
    path = tmp_path / "a.zip"
    polygons = polygons_of(labels)
    path.write_bytes(roi_zip(polygons))
    regions = roifile.roiread(path)
    assert len(regions) == labels.max()
    plain = 0
    for region, parts in zip(regions, polygons, strict=True):
        x, y = np.concatenate([part.outer for part in parts]).T
        assert (region.left, region.top, region.right, region.bottom) == (x.min(), y.min(), x.max(), y.max())
        if len(parts) == 1 and not parts[0].holes:
            plain += 1
            np.testing.assert_array_equal(region.coordinates(), parts[0].outer)
        else:
            rings = [ring for part in parts for ring in (part.outer, *part.holes)]
            read = region.coordinates(multi=True)
            assert len(read) == len(rings)
            for got, ring in zip(read, rings, strict=True):
                np.testing.assert_array_equal(got[: len(ring)], ring)
    assert 0 < plain < len(regions)


@pytest.mark.parametrize("x", [5, 32_760, 32_768, 60_520, 60_530, 65_530, 150_000])
@pytest.mark.parametrize("hole", [False, True])
def test_imagej_regions_keep_coordinates_beyond_16_bits(x, hole, tmp_path):
    def square(left, top, side):
        return np.array([[left, top], [left + side, top], [left + side, top + side], [left, top + side]], float)

    rings = [square(x, 70_000, 10), *([square(x + 3, 70_003, 4)] if hole else [])]
    near = [square(x, 3, 10), *([square(x + 3, 6, 4)] if hole else [])]
    path = tmp_path / "a.zip"
    path.write_bytes(roi_zip([[Polygon(rings[0], rings[1:])], [Polygon(near[0], near[1:])]]))
    for region, expected in zip(roifile.roiread(path), (rings, near), strict=True):
        read = region.coordinates(multi=True) if hole else [region.coordinates()]
        for ring, points in zip(read, expected, strict=True):
            np.testing.assert_array_equal(ring[: len(points)], points)
        # ImageJ 1.53 takes header values from 60,536 on for negative numbers, unless floats follow.
        is_header_enough = max(expected[0].max(axis=0)) <= 60_535
        assert hole or (region.subpixel_coordinates is None) == is_header_enough


def test_the_image_is_found_from_the_labelme_file(tmp_path, monkeypatch):
    image = tmp_path / "in" / "deep er" / "ä.png"
    assert path_from(tmp_path / "out" / "labelme", image) == "../../in/deep er/ä.png"
    assert path_from(image.parent, image) == "ä.png"
    monkeypatch.chdir(tmp_path)
    assert path_from(Path("out/labelme"), Path("in/a.png")) == "../../in/a.png"


def test_nothing_is_exported_as_empty_documents():
    empty = np.zeros((5, 6), np.int32)
    assert polygons_of(empty) == []
    table = measure(empty, np.zeros((5, 6, 3), np.uint8))
    assert json.loads("".join(geojson_document("a", [], table)))["features"] == []
    assert list(coco_annotations(empty, table, image_id=1, first_id=1)) == []


def test_coco_runs_equal_those_of_the_whole_image(labels, table):
    """Counted anew from each nucleus' full mask, with nuclei in the first and last pixel."""
    labels[0, 0], labels[-1, -1] = labels.max() + 1, labels.max() + 2
    labels = relabel(labels)
    table = measure(labels, np.zeros((*labels.shape, 3), np.uint8), probs=np.ones(labels.shape))
    for entry in coco_annotations(labels, table, image_id=1, first_id=1):
        counts = entry["segmentation"]["counts"]
        assert sum(counts) == labels.size
        assert all(counts[1:])
        column_major = np.repeat(np.arange(len(counts)) % 2, counts)
        np.testing.assert_array_equal(column_major.reshape(labels.shape[::-1]).T == 1, labels == entry["id"])
