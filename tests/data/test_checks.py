import cv2
import numpy as np
import pytest

from cervseg_jax.config import load_config
from cervseg_jax.data.checks import bit_depth_warning, check_pairs, common_bit_depth, looks_inverted
from cervseg_jax.data.decode import decode_image, read_image
from cervseg_jax.data.pairs import find_pairs
from cervseg_jax.data.samples import load_sample
from cervseg_jax.errors import DataError


def encoded(image, suffix=".png"):
    return cv2.imencode(suffix, image)[1].tobytes()


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_narrow_values_are_scaled_to_the_whole_range(rng, bits, suffix):
    top = 2**bits - 1
    gray = rng.integers(0, top + 1, (32, 40)).astype(np.uint16)
    gray[0, 0] = top
    seen = []
    image = decode_image(encoded(gray, suffix), source="x", on_narrow=seen.append)
    np.testing.assert_array_equal(image[:, :, 0], np.rint(gray / top * 255))
    assert seen == ([bits] if bits < 16 else [])


def test_a_depth_can_be_set(rng):
    gray = rng.integers(0, 1000, (32, 40)).astype(np.uint16)  # a dark image of a camera of 12 bits
    image = decode_image(encoded(gray), source="x", bit_depth=12)
    np.testing.assert_array_equal(image[:, :, 0], np.rint(gray / 4095 * 255))
    full = decode_image(encoded(gray), source="x", bit_depth=16)
    np.testing.assert_array_equal(full[:, :, 0], np.rint(gray / 65535 * 255))
    with pytest.raises(DataError, match=r"x: has values up to 4100, which is more than 12 bits; set data\.bit_depth"):
        decode_image(encoded(np.full((8, 8), 4100, np.uint16)), source="x", bit_depth=12)


def test_a_set_is_scaled_alike(tiny_config, tiny_dataset):
    """The darkest image of a set is not made brighter than the others."""
    for index, path in enumerate(sorted((tiny_dataset / "train" / "images").iterdir())):
        gray = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE).astype(np.uint16)
        path.write_bytes(encoded(gray * (4 if index == 0 else 16)))
    data = load_config(tiny_config).data
    pairs = find_pairs(data)[0]["train"]
    bits = [item.bits for item in check_pairs(pairs, data).stats]
    assert set(bits) == {10, 12}
    depth = common_bit_depth(bits, data.bit_depth)
    assert depth == 12
    sample = load_sample(pairs[0], image_size=(64, 64), mask_rule="half_range", bit_depth=depth)
    np.testing.assert_array_equal(sample.image, load_sample_at(pairs[0], depth))
    assert "6 16-bit images have values up to 12 bits only (4095): 0..4095 becomes 0..255" in bit_depth_warning(
        bits, depth, option="--set data.bit_depth="
    )
    assert bit_depth_warning([None, 16], 16, option="") == ""
    assert common_bit_depth([None, None], "auto") == "auto"
    assert common_bit_depth([12, 16, None], "auto") == 16
    assert common_bit_depth([12], 14) == 14


def load_sample_at(pair, depth):
    from cervseg_jax.data.resize import resize_image

    return resize_image(read_image(pair.image_path, bit_depth=depth), (64, 64))


@pytest.mark.parametrize(("nucleus", "background"), [(90, 230), (200, 20)])
@pytest.mark.parametrize("radius", [9, 36])
def test_inverted_masks_are_noticed(nucleus, background, radius):
    mask = np.zeros((96, 96), np.uint8)
    cv2.circle(mask, (50, 40), radius, 1, -1)
    image = np.repeat(np.where(mask, nucleus, background).astype(np.uint8)[:, :, None], 3, axis=2)
    assert not looks_inverted(image, mask)
    assert looks_inverted(image, 1 - mask)  # 97 % and 56 % of the image


def test_gaps_between_dense_nuclei_are_not_taken_for_nuclei():
    mask = np.zeros((96, 96), np.uint8)
    for x in range(-8, 112, 24):
        for y in range(-8, 112, 24):
            cv2.circle(mask, (x, y), 12, 1, -1)
    image = np.repeat(np.where(mask, 90, 230).astype(np.uint8)[:, :, None], 3, axis=2)
    assert mask.mean() > 0.6
    assert not looks_inverted(image, mask)


def test_a_crop_that_a_nucleus_fills_is_not_inverted():
    mask = np.zeros((96, 96), np.uint8)
    cv2.circle(mask, (48, 48), 45, 1, -1)
    image = np.repeat(np.where(mask, 90, 230).astype(np.uint8)[:, :, None], 3, axis=2)
    assert mask.mean() > 0.6 and not looks_inverted(image, mask)
    assert not looks_inverted(image, np.ones_like(mask)) and not looks_inverted(image, np.zeros_like(mask))


def test_training_data_with_inverted_masks_are_counted(tiny_config, tiny_dataset):
    for path in (tiny_dataset / "train" / "masks").iterdir():
        path.write_bytes(encoded(255 - cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)))
    data = load_config(tiny_config).data
    found, _ = find_pairs(data)
    assert check_pairs(found["train"], data).num_inverted_masks == 6
    assert check_pairs(found["valid"], data).num_inverted_masks == 0
