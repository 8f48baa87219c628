"""The reference implementation's pictures, one by one."""

import json

import cv2
import numpy as np
import pytest
from scipy import fft

from cervseg_jax.curation import reference_style as style


@pytest.fixture(scope="module")
def inputs(golden):
    """Image [128, 128, 3] and mask [128, 128], BGR as OpenCV reads them."""
    folder = golden / "augment"
    return read(folder / "image.png"), read(folder / "mask.png")[:, :, 0]


def read(path):
    return cv2.imread(str(path), cv2.IMREAD_COLOR)


def assert_equal_pictures(got, want, name):
    got = np.asarray(got).reshape(*want.shape[:2], -1)
    want = want if got.shape[2] == 3 else want[:, :, :1]
    assert got.dtype == np.uint8
    close = np.abs(got.astype(int) - want.astype(int)) <= 1
    assert close.all(axis=2).mean() >= 0.999, (name, close.mean())


def offline_names():
    names = ["hflipped", "vflipped", "rotated_90", "rotated_180", "rotated_270", "shrinked_0_8"]
    names += ["deformed_alpha_1300_sigmoid_8p0"]
    names += [f"barrdistorted_{n}_0p3_0p3" for n in range(101, 106)]
    return names + [f"pincdistorted_{n}_0p3_-0p3" for n in range(101, 106)]


@pytest.mark.parametrize("name", offline_names())
@pytest.mark.parametrize("what", ["image", "mask", "gray mask"])
def test_offline_variants(golden, inputs, name, what):
    picture = {"image": inputs[0], "mask": np.dstack([inputs[1]] * 3), "gray mask": inputs[1]}[what]
    made = dict(style.offline_variants(picture, is_mask=what != "image", random=np.random.default_rng(0)))
    assert len(made) == 20
    prefix = name.replace("8p0", "8.0").replace("0p3", "0.3") + "_"
    assert_equal_pictures(made[prefix], read(golden / "augment" / "offline" / f"{name}_{what.split()[-1]}.png"), name)


def test_offline_distortions_with_the_noise_that_was_drawn(golden, inputs):
    noise = np.load(golden / "augment" / "distort_noise.npz")
    number = style.noise_shape(128)[0]
    for what, picture in (("image", inputs[0]), ("mask", np.dstack([inputs[1]] * 3))):
        for amount in (0.02, 0.03):
            drawn = fft.dctn(noise[f"offline_{what}"], norm="ortho")[:number, :number]
            name = f"distorted_{amount}_rsigma0.5_sigma40".replace("0.0", "0p0").replace("0.5", "0p5")
            want = read(golden / "augment" / "offline" / f"{name}_{what}.png")
            # Random in the reference; ours leaves out the truncation of its 321-tap filter, 0.03 px at this small size.
            close = np.abs(style.distort(picture, amount, drawn).astype(int) - want) <= 1
            assert close.mean() > 0.97, (name, close.mean())


def online_operations(image, mask):
    """Name -> (image, mask) by the online augmentor's rules."""
    pixel = tuple(float(value) for value in image[2, 2])
    mask_pixel = (float(mask[2, 2]),)

    def both(function):
        return function(image, pixel), function(mask, mask_pixel)

    made = {"hflip": (image[:, ::-1], mask[:, ::-1]), "vflip": (image[::-1], mask[::-1])}
    for angle in (30, 90, 180, 270):
        made[f"rotate_{angle}"] = both(lambda p, border, angle=angle: style.rotate(p, angle, border=border))
    sheared = both(lambda p, border: style.shear(p, 0.1, border=border))
    made["shear_0_1"] = sheared
    made["shear_0_1_hflip"] = tuple(p[:, ::-1] for p in sheared)
    made["shear_0_1_vflip"] = tuple(p[::-1] for p in sheared)
    made["shear_0_1_hvflip"] = tuple(p[::-1, ::-1] for p in sheared)
    made["shrink_0_8"] = (
        style.shrink(image, 0.8, color=lambda s: s[2, 2] + s[s.shape[0] - 10, s.shape[1] - 10][::-1]),
        style.shrink(mask, 0.8, color=lambda s: s[s.shape[0] - 10, s.shape[1] - 10]),
    )
    for prefix, amount in (("barrel", 0.3), ("pincushion", -0.3)):
        bulged = [list(style.bulges(p, radius=0.3, amount=amount)) for p in (image, mask)]
        for number, pair in enumerate(zip(*bulged, strict=True), start=101):
            made[f"{prefix}_{number}"] = pair
    made["sharpen_k1"] = (style.sharpen(image, 1.0), style.sharpen(mask, 1.0))
    made["brighten_1_2_10"] = (style.brighten(image, 1.2, 10), style.brighten(mask, 1.2, 10))
    fields = style.elastic_fields(((128, 128, 3), (128, 128, 1)))
    made["deform_alpha1300_sigma8"] = tuple(
        style.elastic(p, style.elastic_maps(field)) for p, field in zip((image, mask), fields, strict=True)
    )
    return made


def test_online_operations(golden, inputs):
    folder = golden / "augment"
    made = online_operations(*inputs)
    listed = {entry["name"] for entry in json.loads((folder / "index.json").read_text()) if entry["group"] == "online"}
    random_or_broken = {"distort_0_02", "deform_with_brightening_enabled"}
    assert listed - set(made) == random_or_broken
    for name, pictures in made.items():
        for what, picture in zip(("image", "mask"), pictures, strict=True):
            assert_equal_pictures(picture, read(folder / "online" / f"{name}_{what}.png"), f"{name} {what}")


def test_elastic_fields_have_the_measured_size(golden):
    stored = np.load(golden / "augment" / "deform_fields.npz")
    dx, dy = style.elastic_fields(((128, 128, 3),))[0]
    np.testing.assert_allclose(dx, stored["offline_dx"], atol=1e-4)
    np.testing.assert_allclose(dy, stored["offline_dy"], atol=1e-4)
    big = style.elastic_fields(((512, 512, 3),))[0][0]
    np.testing.assert_allclose(big.std(axis=(0, 1)), (2.262, 2.277, 2.257), atol=2e-3)
    assert np.abs(big).max() == pytest.approx(8.11, abs=0.02)


def test_bulges_equal_a_loop_over_pixels():
    size, center, radius, amount = 40, (0.4, 0.6), 0.3, -0.3
    rows, columns = np.mgrid[:size, :size]
    map_x, map_y = columns.astype(np.float32), rows.astype(np.float32)
    for row in range(size):
        for column in range(size):
            dx, dy = column - size * center[0], row - size * center[1]
            distance, reach = np.hypot(dx, dy), size * radius
            if distance < reach:
                factor = 1.0 if distance == 0 else np.sin(np.pi * distance / reach / 2) ** amount
                map_x[row, column] = factor * dx + size * center[0]
                map_y[row, column] = factor * dy + size * center[1]
    picture = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)
    map_x, map_y = np.round(map_x * 32) / 32, np.round(map_y * 32) / 32
    want = cv2.remap(picture, map_x, map_y, cv2.INTER_LINEAR)
    got = style.bulge(picture, center, radius=radius, amount=amount)
    assert np.abs(got.astype(int) - want).max() <= 1
