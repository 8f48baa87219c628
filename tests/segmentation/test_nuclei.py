"""Blocks: an image in many blocks has the nuclei that it has in one."""

import numpy as np
import pytest

from cervseg_jax.schema import PostprocessingConfig
from cervseg_jax.segmentation import blocks
from cervseg_jax.segmentation.nuclei import find_nuclei, label_nuclei

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
