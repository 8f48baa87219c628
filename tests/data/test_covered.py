"""Nuclei that others cover stay whole: on disk, when samples are read, and in every geometric augmentation."""

import numpy as np
import pytest

from cervseg_jax.data.augment import AUGMENTATIONS
from cervseg_jax.data.covered_files import load_covered, save_covered
from cervseg_jax.data.geometric import random_window
from cervseg_jax.data.pairs import find_pairs
from cervseg_jax.data.samples import Sample, load_sample, whole_truth
from cervseg_jax.errors import DataError
from cervseg_jax.extents import Extent, extents_of, layers_of
from cervseg_jax.files import write_labels, write_png
from cervseg_jax.schema import DataConfig

NUCLEI = {1: Extent(20, 20, np.ones((30, 40), bool)), 2: Extent(35, 50, np.ones((20, 22), bool))}
SHAPE = (96, 96)


@pytest.fixture
def sample(rng):
    labels, covered = layers_of(NUCLEI, shape=SHAPE)
    return Sample(rng.integers(0, 256, (*SHAPE, 3), np.uint8), (labels > 0).astype(np.uint8), labels, covered)


def alone(sample, label):
    """The sample with one nucleus, whole."""
    labels, _ = layers_of({label: NUCLEI[label]}, shape=SHAPE)
    return Sample(sample.image, (labels > 0).astype(np.uint8), labels)


WINDOW = {"size": (64, 80), "scale": (0.8, 1.3), "max_degrees": 180.0, "nucleus_share": 0.0}
OPERATIONS = {name: (AUGMENTATIONS[name], {}) for name in ("flip", "rotate90", "affine", "crop", "elastic", "bulge")}


@pytest.mark.parametrize("name", [*OPERATIONS, "shrink", "random_window"])
def test_a_covered_nucleus_moves_as_if_it_were_alone(sample, name):
    known = {"shrink": (AUGMENTATIONS["shrink"], {}), "random_window": (random_window, WINDOW)} | OPERATIONS
    function, args = known[name]
    for seed in range(5):
        got = function(sample, np.random.default_rng(seed), **args)
        for label, extent in extents_of(got.instances, got.covered).items():
            expected = function(alone(sample, label), np.random.default_rng(seed), **args).mask > 0
            drawn = np.zeros_like(expected)
            drawn[extent.window] = extent.inside
            np.testing.assert_array_equal(drawn, expected)


def test_a_dataset_keeps_covered_nuclei(sample, tmp_path):
    for name in ("images", "masks", "instances"):
        (tmp_path / name).mkdir()
    write_png(tmp_path / "images" / "a.png", sample.image)
    write_png(tmp_path / "masks" / "a.png", sample.mask * 255)
    write_labels(tmp_path / "instances", "a", sample.instances)
    save_covered(tmp_path, "a", sample.covered)
    (pair,) = find_pairs(DataConfig(root=tmp_path), whole=True)[0]["test"]
    for label, extent in whole_truth(pair, SHAPE).items():
        assert (extent.top, extent.left) == (NUCLEI[label].top, NUCLEI[label].left)
        np.testing.assert_array_equal(extent.inside, NUCLEI[label].inside)
    read = load_sample(pair, image_size=SHAPE, mask_rule="half_range", with_instances=True)
    np.testing.assert_array_equal(read.covered, sample.covered)
    save_covered(tmp_path, "a", ())
    assert not list((tmp_path / "covered").iterdir())


@pytest.mark.parametrize("content", [b"", b"nothing", None])
def test_bad_files_are_one_message(content, tmp_path):
    path = tmp_path / "covered" / "a.npz"
    path.parent.mkdir()
    if content is None:
        with path.open("wb") as file:
            np.savez(file, covered=np.zeros((1, 4), np.float32))
    else:
        path.write_bytes(content)
    with pytest.raises(DataError, match="a.npz"):
        load_covered(path)
