import cv2
import numpy as np
import pytest

from cervseg_jax.data.augment import AUGMENTATIONS, apply_operations
from cervseg_jax.data.samples import Sample

NAMES = sorted(set(AUGMENTATIONS) - {"overlap"})
"""`overlap` adds nuclei; it has tests of its own."""
GEOMETRIC = ("flip", "rotate90", "affine", "crop", "elastic", "bulge", "shrink")


def disc_sample(height=96, width=96):
    """A dark disc off center: the mask can be recomputed from the image."""
    rows, columns = np.mgrid[:height, :width]
    mask = np.uint8((rows - 40) ** 2 + (columns - 55) ** 2 < 15**2)
    image = np.where(mask[..., None] > 0, np.uint8([50, 40, 90]), np.uint8([215, 220, 225]))
    return Sample(image, mask, mask.astype(np.int32) * 700)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(96, 96), (96, 128)])
def test_image_and_mask_stay_registered(name, size):
    sample = disc_sample(*size)
    for seed in range(20):
        got = AUGMENTATIONS[name](sample, np.random.default_rng(seed))
        assert got.image.shape == sample.image.shape
        assert got.mask.shape == sample.mask.shape
        assert got.image.dtype == got.mask.dtype == np.uint8
        assert set(np.unique(got.mask)) <= {0, 1}
        np.testing.assert_array_equal(got.instances, got.mask.astype(np.int32) * 700)
        gray = got.image.mean(axis=2)
        dark = gray < (gray.min() + gray.max()) / 2
        overlap = 2 * (dark & (got.mask > 0)).sum() / (dark.sum() + got.mask.sum())
        assert overlap > (0.9 if name == "shrink" else 0.97), (name, seed, overlap)  # discs of a few pixels


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(GEOMETRIC)))
def test_color_changes_leave_the_mask_alone(name):
    sample = disc_sample()
    got = AUGMENTATIONS[name](sample, np.random.default_rng(1))
    np.testing.assert_array_equal(got.mask, sample.mask)
    assert not np.array_equal(got.image, sample.image)


def test_every_operation_does_something_and_repeats():
    sample = disc_sample()
    for name in NAMES:
        function = AUGMENTATIONS[name]
        results = [function(sample, np.random.default_rng(seed)).image for seed in range(12)]
        again = [function(sample, np.random.default_rng(seed)).image for seed in range(12)]
        assert all(np.array_equal(a, b) for a, b in zip(results, again, strict=True)), name
        assert len({result.tobytes() for result in results}) > 1, name


def test_affine_without_freedom_is_the_identity():
    sample = disc_sample()
    got = AUGMENTATIONS["affine"](sample, np.random.default_rng(0), max_degrees=0.0, scale=(1.0, 1.0), max_shift=0.0)
    np.testing.assert_array_equal(got.mask, sample.mask)
    np.testing.assert_array_equal(got.image, sample.image)


def test_stain_without_freedom_is_the_identity_and_gain_darkens():
    sample = disc_sample()
    stain = AUGMENTATIONS["stain"]
    got = stain(sample, np.random.default_rng(0), max_gain=0.0, max_offset=0.0)
    assert np.abs(got.image.astype(int) - sample.image).max() <= 1


def test_stain_equals_scikit_images_separation():
    from skimage.color import hed_from_rgb, rgb_from_hed

    image = np.random.default_rng(3).integers(40, 255, (16, 16, 3), np.uint8)
    got = AUGMENTATIONS["stain"](Sample(image, image[:, :, 0] * 0), np.random.default_rng(5), max_offset=0.0)
    gain = 1.0 + np.random.default_rng(5).uniform(-0.15, 0.15, 3)
    density = -np.log(image / 255.0)
    want = 255 * np.exp(-np.maximum((density @ hed_from_rgb * gain) @ rgb_from_hed, 0))
    assert np.abs(got.image - want).max() <= 1.0


def test_elastic_moves_by_what_it_says():
    rows, columns = np.mgrid[:64, :64]
    ramp = np.dstack([columns * 4, rows * 4, columns * 0]).astype(np.uint8)
    got = AUGMENTATIONS["elastic"](Sample(ramp, ramp[:, :, 0] * 0), np.random.default_rng(2), max_shift_px=5.0)
    inner = (slice(8, -8), slice(8, -8))
    shift = (got.image[inner][..., :2].astype(float) - ramp[inner][..., :2]) / 4
    assert 1.0 < np.hypot(shift[..., 0], shift[..., 1]).max() <= 5.6


def test_affine_scales_areas():
    sample = disc_sample()
    got = AUGMENTATIONS["affine"](sample, np.random.default_rng(0), scale=(1.5, 1.5), max_shift=0.0)
    assert got.mask.sum() == pytest.approx(2.25 * sample.mask.sum(), rel=0.05)


def test_probability_zero_and_one(rng):
    sample = disc_sample()
    marks = []

    def mark(sample, rng, *, value: int = 0):
        marks.append(value)
        return sample

    apply_operations(sample, rng, [(mark, 0.0, {"value": 1}), (mark, 1.0, {"value": 2})])
    assert marks == [2]


def test_rectangles_are_not_turned_sideways():
    image = np.zeros((4, 6, 3), np.uint8)
    cv2.circle(image, (1, 1), 1, (255, 255, 255), -1)
    for seed in range(10):
        got = AUGMENTATIONS["rotate90"](Sample(image, image[:, :, 0] // 255), np.random.default_rng(seed))
        assert got.image.shape == (4, 6, 3)
