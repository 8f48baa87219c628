"""The augmentation `overlap`: copies of nuclei absorb light where they lie, and both nuclei stay known."""

import numpy as np
import pytest

from cervseg_jax.data.augment import AUGMENTATIONS
from cervseg_jax.data.overlap import MARGIN_PX, is_separate, lay_down, place_on, take_copy
from cervseg_jax.data.samples import Sample
from cervseg_jax.extents import extents_of, shared_pixels


@pytest.fixture
def sample():
    """Two discs of different darkness on an even ground, a third at the edge."""
    rows, columns = np.mgrid[:120, :140]
    labels = np.zeros((120, 140), np.int32)
    image = np.full((120, 140, 3), 200, np.uint8)
    for label, (row, column, radius, level) in enumerate(((40, 40, 14, 120), (80, 95, 10, 80), (2, 110, 9, 90)), 1):
        inside = np.hypot(rows - row, columns - column) < radius
        labels[inside], image[inside] = label, level
    return Sample(image, (labels > 0).astype(np.uint8), labels)


def test_only_whole_nuclei_apart_from_others_are_copied(sample):
    extents = extents_of(sample.instances)
    assert [is_separate(label, extent, sample.instances) for label, extent in extents.items()] == [True, True, False]


@pytest.mark.parametrize("degree", [0.0, 0.1, 0.3, 0.6])
def test_a_copy_overlaps_as_much_as_is_wanted_and_multiplies_the_light(sample, degree):
    extents = extents_of(sample.instances)
    for seed in range(8):
        rng = np.random.default_rng(seed)
        copy = take_copy(sample.image, sample.instances, extents[2], rng)
        placed = place_on(copy, extents[1], degree, shape=(120, 140), rng=rng)
        if placed is None:
            continue
        share = shared_pixels(placed.extent, extents[1]) / placed.extent.area
        assert abs(share - degree) < 0.06
        image = sample.image.copy()
        lay_down(image, placed)
        # The middle of the copy transmits 80 / 200 of the light.
        row = placed.extent.top + placed.extent.inside.shape[0] // 2
        column = placed.extent.left + placed.extent.inside.shape[1] // 2
        np.testing.assert_allclose(image[row, column], sample.image[row, column] * (81 / 201), atol=1.5)
        far = np.ones((120, 140), bool)
        height, width = placed.extent.inside.shape
        top, left = placed.extent.top - MARGIN_PX, placed.extent.left - MARGIN_PX
        far[top : top + height + 2 * MARGIN_PX, left : left + width + 2 * MARGIN_PX] = False
        np.testing.assert_array_equal(image[far], sample.image[far])


def test_all_nuclei_stay_known_at_full_extent(sample):
    before = extents_of(sample.instances)
    most = 0
    for seed in range(12):
        got = AUGMENTATIONS["overlap"](sample, np.random.default_rng(seed), max_copies=3, degree=(0.3, 0.6))
        after = extents_of(got.instances, got.covered)
        for label, extent in before.items():
            np.testing.assert_array_equal(after[label].inside, extent.inside)
        np.testing.assert_array_equal(got.mask > 0, got.instances > 0)
        assert {extent.area for extent in after.values()} <= {extent.area for extent in before.values()}
        most = max(most, len(after) - len(before))
        again = AUGMENTATIONS["overlap"](sample, np.random.default_rng(seed), max_copies=3, degree=(0.3, 0.6))
        np.testing.assert_array_equal(got.image, again.image)
    assert most >= 2


def test_a_sample_without_labels_or_without_dark_nuclei_stays_as_it_is(sample):
    rng = np.random.default_rng(0)
    assert AUGMENTATIONS["overlap"](sample._replace(instances=None), rng).image is sample.image
    flat = sample._replace(image=np.full_like(sample.image, 200))
    np.testing.assert_array_equal(AUGMENTATIONS["overlap"](flat, rng).image, flat.image)
