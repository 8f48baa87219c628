"""Averaging over symmetries: every copy comes back to where it belongs."""

import numpy as np
import pytest

from cervseg_jax.data import rays
from cervseg_jax.data.targets import target_maps
from cervseg_jax.segmentation.tta import with_tta

HEADS = ("mask", "distance", "hover")


@pytest.mark.parametrize("side", [24, 32])
def test_a_predictor_that_is_right_everywhere_stays_right(side, rng):
    """It reads the labels from the image and makes the targets of what it sees, turned or not."""
    labels = np.zeros((side, 32), np.int32)
    labels[3:12, 4:20], labels[14:22, 10:29] = 1, 2
    labels[3:6, 4:8] = 0
    image = np.repeat(labels[None, ..., None], 3, axis=3).astype(np.uint8)
    calls = []

    def predict(images):
        calls.append(images.shape)
        maps = [target_maps(one[..., 0].astype(np.int32), HEADS) for one in images]
        return np.stack([np.dstack([one[..., :1] > 0, m / 255]) for one, m in zip(images, maps, strict=True)])

    got = with_tta(predict, HEADS)(image)
    assert len(calls) == (8 if side == 32 else 4)
    np.testing.assert_allclose(got, predict(image), atol=0.01)


def test_rays_come_back_to_their_directions(monkeypatch):
    monkeypatch.setattr(rays, "STRIDE", 1)
    labels = np.zeros((40, 40), np.int32)
    labels[6:20, 5:34], labels[24:35, 10:18] = 1, 2
    labels[6:10, 5:12] = 0
    heads = ("mask", "rays")

    def predict(images):
        maps = [target_maps(one[..., 0].astype(np.int32), heads) for one in images]
        return np.stack([np.dstack([one[..., :1] > 0, m / 255]) for one, m in zip(images, maps, strict=True)])

    image = np.repeat(labels[None, ..., None], 3, axis=3).astype(np.uint8)
    expected, got = predict(image), with_tta(predict, heads)(image)
    known = (expected[..., 2:] > 0).all(axis=-1)
    assert known.sum() > 100
    # Pixels and steps are rounded, so that a ray and its mirror image may differ by half a pixel.
    difference = np.abs(rays.decode_lengths(got[known][:, 2:]) - rays.decode_lengths(expected[known][:, 2:]))
    assert difference.max() < 1.0
    assert difference.mean() < 0.2


def test_the_average_is_a_mean(rng):
    image = rng.integers(0, 256, (2, 16, 16, 3), np.uint8)
    position = np.linspace(0, 1, 16)[None, None, :, None]

    def predict(images):
        return np.broadcast_to(position, (*images.shape[:3], 1)).astype(np.float32)

    np.testing.assert_allclose(with_tta(predict, ("mask",))(image), 0.5, atol=1e-6)
