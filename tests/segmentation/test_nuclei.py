"""Blocks: an image in many blocks has the nuclei that it has in one."""

import threading

import numpy as np
import pytest

from cervseg_jax.schema import PostprocessingConfig
from cervseg_jax.segmentation import blocks, nuclei
from cervseg_jax.segmentation.instances import label_instances
from cervseg_jax.segmentation.nuclei import find_nuclei, keep_nuclei, label_nuclei

PARAMS = PostprocessingConfig(min_area_px=10)


@pytest.fixture
def image_and_maps(rng):
    mask = np.zeros((150, 220), bool)
    rows, columns = np.mgrid[:150, :220]
    for _ in range(45):
        row, column = rng.uniform(0, 150), rng.uniform(0, 220)
        mask |= np.hypot(rows - row, columns - column) < rng.uniform(4, 8)
    return rng.integers(0, 256, (150, 220, 3), np.uint8), mask.astype(np.float32)[..., None]


def test_blocks_give_the_nuclei_of_the_whole(image_and_maps, monkeypatch):
    image, maps = image_and_maps
    whole = find_nuclei(maps, maps[..., 0] >= 0.5, image, ("mask",), PARAMS)
    monkeypatch.setattr(blocks, "BLOCK_PX", 64)
    monkeypatch.setattr(blocks, "HALO_PX", 60)
    parted = find_nuclei(maps, maps[..., 0] >= 0.5, image, ("mask",), PARAMS)
    assert len(whole.polygons) > 15
    np.testing.assert_array_equal(parted.labels, label_nuclei(maps, maps[..., 0] >= 0.5, ("mask",), PARAMS))
    assert parted.labels.max() == whole.labels.max() == len(parted.polygons)
    np.testing.assert_array_equal(parted.table["label"], np.arange(1, len(parted.polygons) + 1))
    # The same areas under other numbers.
    pairs = np.unique(np.stack([whole.labels.ravel(), parted.labels.ravel()]), axis=1)
    assert pairs.shape[1] == whole.labels.max() + 1
    order = pairs[1, 1:] - 1
    for name, values in whole.table.items():
        if name != "label":
            np.testing.assert_allclose(parted.table[name][order], values, rtol=1e-9, err_msg=name)
    for row, other in enumerate(order):
        got, want = parted.polygons[other], whole.polygons[row]
        assert {tuple(map(tuple, part.outer)) for part in got} == {tuple(map(tuple, part.outer)) for part in want}


def same_nuclei(got, expected):
    """Whether labels, measurements and outlines are the same bytes."""
    np.testing.assert_array_equal(got.labels, expected.labels)
    for name, values in expected.table.items():
        np.testing.assert_array_equal(got.table[name], values, err_msg=name)
    rings = [
        [ring.tobytes() for own in found.polygons for part in own for ring in (part.outer, *part.holes)]
        for found in (got, expected)
    ]
    assert rings[0] == rings[1]


@pytest.mark.parametrize("threads", [2, 5, None])
def test_any_number_of_threads_gives_the_same_nuclei(image_and_maps, monkeypatch, threads):
    image, maps = image_and_maps
    monkeypatch.setattr(blocks, "BLOCK_PX", 40)
    monkeypatch.setattr(blocks, "HALO_PX", 30)
    args = (maps, maps[..., 0] >= 0.5, image, ("mask",), PARAMS)
    alone = find_nuclei(*args, threads=1)
    found = find_nuclei(*args, threads=threads)
    same_nuclei(found, alone)
    keep = np.arange(len(alone.polygons)) % 3 > 0
    kept = [keep_nuclei(own, keep, maps, image, threads=count) for own, count in ((found, threads), (alone, 1))]
    same_nuclei(*kept)


def test_blocks_are_labelled_at_the_same_time_and_few_ahead(image_and_maps, monkeypatch):
    image, maps = image_and_maps
    monkeypatch.setattr(blocks, "BLOCK_PX", 40)
    monkeypatch.setattr(blocks, "HALO_PX", 30)
    together, lock, under_way, most = threading.Barrier(2), threading.Lock(), set(), []

    def label(*args):
        with lock:
            under_way.add(threading.get_ident())
            most.append(len(under_way))
        if len(most) <= 2:
            together.wait(timeout=30)  # breaks if one block waits for the other
        labels = label_instances(*args)
        with lock:
            under_way.discard(threading.get_ident())
        return labels

    monkeypatch.setattr(nuclei, "label_instances", label)
    assert len(find_nuclei(maps, maps[..., 0] >= 0.5, image, ("mask",), PARAMS, threads=2).polygons) > 15
    assert max(most) == 2 and len(most) == 24


def test_labels_may_lie_on_disk(image_and_maps, tmp_path):
    image, maps = image_and_maps
    store = np.lib.format.open_memmap(tmp_path / "labels.npy", "w+", np.int32, maps.shape[:2])
    found = find_nuclei(maps, maps[..., 0] >= 0.5, image, ("mask",), PARAMS, labels=store)
    np.testing.assert_array_equal(store, find_nuclei(maps, maps[..., 0] >= 0.5, image, ("mask",), PARAMS).labels)
    assert found.labels is store


def test_no_nuclei(image_and_maps):
    image, maps = image_and_maps
    found = find_nuclei(0 * maps, maps[..., 0] > 2, image, ("mask",), PARAMS)
    assert found.polygons == []
    assert len(found.table["area_px"]) == 0
