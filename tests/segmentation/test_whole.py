"""Whole nuclei from rays: suppression, the fit to the mask, blocks and exports."""

import json

import numpy as np
import pytest
import shapely

from cervseg_jax.annotations.coco import read_coco
from cervseg_jax.annotations.geojson import parse_geojson
from cervseg_jax.annotations.labelme import parse_labelme
from cervseg_jax.annotations.outlines import rasterize
from cervseg_jax.curation.synthetic import draw_scene
from cervseg_jax.data import rays
from cervseg_jax.data.targets import target_maps
from cervseg_jax.extents import extent_overlaps, layers_of, overlap_degrees, trimmed
from cervseg_jax.segmentation import blocks
from cervseg_jax.segmentation.candidates import CandidateCollector, Candidates, dense_heads, split_prediction
from cervseg_jax.segmentation.instances import clean
from cervseg_jax.segmentation.nuclei import find_nuclei, keep_nuclei, label_nuclei
from cervseg_jax.segmentation.result import Result
from cervseg_jax.segmentation.suppression import Proposals, suppress

HEADS = ("mask", "boundary", "distance", "rays")
SIDE = 256


@pytest.fixture(scope="module")
def scene():
    return draw_scene(shape=(SIDE, SIDE), seed=5)


@pytest.fixture(scope="module")
def truth(scene):
    windows = (rasterize(outline, shape=(SIDE, SIDE)) for outline in scene.outlines)
    extents = (trimmed(inside, top=top, left=left) for top, left, inside in windows)
    return {label: extent for label, extent in enumerate(extents, start=1) if extent is not None}


@pytest.fixture(scope="module")
def maps(truth):
    """What a network that is always right would predict."""
    labels, covered = layers_of(truth, shape=(SIDE, SIDE))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rays, "STRIDE", 1)
        targets = target_maps(labels, HEADS, covered)
    return np.concatenate([(labels > 0)[..., None], targets / 255], axis=2).astype(np.float32)


@pytest.fixture(scope="module")
def result(scene, maps):
    prediction = split_prediction(maps, HEADS, image_size=(SIDE, SIDE))
    return Result(scene.image, prediction.maps, heads=dense_heads(HEADS), candidates=prediction.candidates)


def best_iou(truth, found):
    table = extent_overlaps(list(truth), list(found))
    best = np.zeros(len(table.truth_areas))
    np.maximum.at(best, table.rows, table.iou)
    return best


def test_right_rays_restore_all_nuclei_whole(result, truth):
    assert (overlap_degrees(list(truth.values())) > 0.2).sum() > 8
    assert len(result.extents) == len(truth)
    assert best_iou(truth.values(), result.extents).min() > 0.75
    assert best_iou(truth.values(), result.extents).mean() > 0.95


def test_labels_divide_the_mask_as_the_watershed_does(result):
    params = result.postprocessing.params
    inside = clean(result.mask, min_area_px=params.min_area_px, max_hole_px=params.max_hole_px)
    np.testing.assert_array_equal(result.labels > 0, inside)
    parted = Result(result.image, result.maps, heads=result.heads)
    assert result.labels.max() >= parted.labels.max()
    pairs = np.unique(np.stack([result.labels.ravel(), parted.labels.ravel()]), axis=1)
    assert pairs.shape[1] == result.labels.max() + 1  # every nucleus lies in one part of the watershed
    for label, extent in enumerate(result.extents, start=1):
        assert (result.labels[extent.window][extent.inside] == label).sum() == (result.labels == label).sum()
    np.testing.assert_array_equal(result.table["area_px"], np.bincount(result.labels.ravel())[1:])
    np.testing.assert_array_equal(result.table["whole_area_px"], [extent.area for extent in result.extents])
    assert (result.table["whole_area_px"] > result.table["area_px"]).sum() > 5
    areas = [sum(shapely.Polygon(part.outer, part.holes).area for part in parts) for parts in result.outlines]
    np.testing.assert_allclose(areas, result.table["whole_area_px"])


def test_rows_may_come_in_any_parts(maps, result):
    collector = CandidateCollector(HEADS)
    first = 0
    for count in (1, 7, 30, 100, SIDE):
        rows = maps[first : first + count]
        np.testing.assert_array_equal(collector.add(first, rows), rows[..., :3])
        first += len(rows)
    for got, expected in zip(collector.result(), result.candidates, strict=True):
        np.testing.assert_array_equal(got, expected)


def test_the_order_of_the_candidates_changes_nothing(result, rng):
    tied = result.candidates._replace(scores=np.round(result.candidates.scores, 1))
    order = rng.permutation(len(tied.scores))
    shuffled = Candidates(*(field[order] for field in tied))
    expected, got = (
        suppress(Proposals(candidates, shape=(SIDE, SIDE)), min_score=0.3, max_iou=0.4)
        for candidates in (tied, shuffled)
    )
    assert len(expected) == len(got) > 10
    for one, other in zip(expected, got, strict=True):
        assert one[1:] == other[1:]
        assert (one.extent.top, one.extent.left) == (other.extent.top, other.extent.left)
        np.testing.assert_array_equal(one.extent.inside, other.extent.inside)


def test_suppression_equals_a_loop_over_all_pairs(result):
    proposals = Proposals(result.candidates, shape=(SIDE, SIDE), min_score=0.5)
    masks = []
    for extent in proposals.extents:
        mask = np.zeros((SIDE, SIDE), bool)
        mask[extent.window] = extent.inside
        masks.append(mask)
    kept = []
    for index, mask in enumerate(masks):
        if all((mask & masks[other]).sum() / (mask | masks[other]).sum() <= 0.3 for other in kept):
            kept.append(index)
    got = suppress(proposals, min_score=0.5, max_iou=0.3)
    assert [detection.score for detection in got] == [float(proposals.scores[index]) for index in kept]


def test_blocks_and_memory_maps_give_the_nuclei_of_the_whole(scene, maps, result, monkeypatch, tmp_path):
    monkeypatch.setattr(blocks, "BLOCK_PX", 96)
    monkeypatch.setattr(blocks, "HALO_PX", 80)
    store = np.lib.format.open_memmap(tmp_path / "labels.npy", "w+", np.int32, (SIDE, SIDE))
    args = (result.maps, result.mask, scene.image, result.heads, result.postprocessing.params)
    parted = find_nuclei(*args, candidates=result.candidates, labels=store, threads=3)
    np.testing.assert_array_equal(store, result.labels)
    for name, values in result.nuclei.table.items():
        np.testing.assert_allclose(parted.table[name], values, err_msg=name)
    labels = label_nuclei(result.maps, result.mask, result.heads, args[-1], candidates=result.candidates)
    np.testing.assert_array_equal(labels, result.labels)


def test_what_no_ray_explains_is_divided_by_the_watershed(scene, result):
    nothing = Candidates(*(field[:0] for field in result.candidates))
    plain = Result(scene.image, result.maps, heads=result.heads)
    got = Result(scene.image, result.maps, heads=result.heads, candidates=nothing)
    np.testing.assert_array_equal(got.labels, plain.labels)


def test_nuclei_that_are_left_out_uncover_others(scene, result):
    found = Result(scene.image, result.maps, heads=result.heads, candidates=result.candidates).nuclei
    keep = np.arange(len(found.whole)) % 3 > 0
    kept = keep_nuclei(found, keep, result.maps, scene.image)
    assert len(kept.polygons) == len(kept.whole) == kept.labels.max() == keep.sum()
    hidden = result.table["area_px"][keep] < kept.table["area_px"]
    assert hidden.any()
    np.testing.assert_array_equal(kept.table["area_px"], np.bincount(kept.labels.ravel())[1:])


def test_files_hold_the_whole_nuclei(result, tmp_path):
    result.save(tmp_path, ["geojson", "coco", "labelme", "nuclei"])
    geojson, labelme = tmp_path / "geojson" / "image.geojson", tmp_path / "labelme" / "image.json"
    coco = tmp_path / "coco" / "image.json"
    found = {
        "geojson": parse_geojson(json.loads(geojson.read_text()), source=geojson),
        "labelme": parse_labelme(json.loads(labelme.read_text()), source=labelme),
        "coco": read_coco(coco.read_bytes(), source=coco)[0][0],
    }
    for name, annotation in found.items():
        assert len(annotation.objects) == len(result.extents), name
        for entry, extent in zip(annotation.objects, result.extents, strict=True):
            drawn = trimmed(rasterize(entry.rings, shape=(SIDE, SIDE)).inside)
            np.testing.assert_array_equal(drawn.inside, extent.inside, err_msg=name)
    assert "whole_area_px" in (tmp_path / "nuclei" / "image.csv").read_text().splitlines()[0]
