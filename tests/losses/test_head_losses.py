"""Losses of the heads besides the mask, against plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cervseg_jax.losses.heads import HEAD_LOSSES, heads_loss, touching_loss


@pytest.fixture
def logits(rng):
    return jnp.asarray(rng.normal(size=(2, 6, 5, 5)), jnp.float32)


@pytest.fixture
def maps(rng):
    return jnp.asarray(rng.integers(0, 256, (2, 6, 5, 4), np.uint8))


HEADS = ("mask", "boundary", "distance", "hover")


def expected(logits, maps):
    """One row per image, one column per head."""
    z, t = np.asarray(logits, np.float64), np.asarray(maps, np.float64) / 255
    p = 1 / (1 + np.exp(-z))
    rows = []
    for image in range(2):
        q, target = p[image, ..., 1], t[image, ..., 0]
        bce = -(target * np.log(q) + (1 - target) * np.log(1 - q)).mean()
        dice = 1 - (2 * (q * target).sum() + 1) / (q.sum() + target.sum() + 1)
        error = np.abs(p[image, ..., 2] - t[image, ..., 1])
        huber = np.where(error <= 0.05, error**2 / 0.1, error - 0.025).mean()
        off = 2 * (p[image, ..., 3:] - t[image, ..., 2:])
        slopes = (np.diff(off[..., 0], axis=1) ** 2).mean() + (np.diff(off[..., 1], axis=0) ** 2).mean()
        rows.append([(bce + dice) / 2, huber, (off**2).mean() + slopes])
    return np.array(rows)


def test_each_head_counts_with_its_weight(logits, maps):
    want = expected(logits, maps)
    got = heads_loss(logits, maps, jnp.ones(2), heads=HEADS, weights={"distance": 3.0})
    np.testing.assert_allclose(got, (want * [1, 3, 1]).sum(axis=1).mean(), rtol=1e-5)


def test_images_without_labels_do_not_count(logits, maps):
    want = expected(logits, maps)
    got = heads_loss(logits, maps, jnp.array([0.0, 1.0]), heads=HEADS, weights={})
    np.testing.assert_allclose(got, want[1].sum(), rtol=1e-5)
    assert heads_loss(logits, maps, jnp.zeros(2), heads=HEADS, weights={}) == 0


@pytest.mark.parametrize("head", HEAD_LOSSES)
def test_perfect_predictions_cost_nothing_and_gradients_are_finite(head):
    targets = jnp.asarray(np.random.default_rng(0).random((1, 4, 4, 2 if head == "hover" else 1)) > 0.5, jnp.float32)
    extreme = 200.0 * (targets - 0.5)
    assert float(HEAD_LOSSES[head](extreme, targets)[0]) == pytest.approx(0, abs=1e-5)
    gradient = jax.grad(lambda z: HEAD_LOSSES[head](z, targets).sum())
    assert jnp.isfinite(gradient(-extreme)).all()
    assert jnp.isfinite(gradient(extreme)).all()


def test_touching_loss_looks_between_nuclei_alone(rng):
    logits = jnp.asarray(rng.normal(size=(2, 4, 4, 1)), jnp.float32)
    masks = jnp.asarray(rng.random((2, 4, 4, 1)) > 0.5, jnp.float32)
    touching = np.zeros((2, 4, 4, 1), np.uint8)
    touching[0, 1, 2], touching[1, 3, 3] = 1, 1
    z, y = float(logits[0, 1, 2, 0]), float(masks[0, 1, 2, 0])
    want = np.log1p(np.exp(z)) - y * z
    np.testing.assert_allclose(touching_loss(logits, masks, touching, jnp.array([1.0, 0.0])), want, rtol=1e-5)
    assert touching_loss(logits, masks, 0 * touching, jnp.ones(2)) == 0


def rays_by_loop(logits, targets):
    """Cross-entropy of the first map, and the relative error of the rays, pixel by pixel."""
    z, t = np.asarray(logits, np.float64), np.asarray(targets, np.float64)
    p = 1 / (1 + np.exp(-z[..., 0]))
    bce = -(t[..., 0] * np.log(p) + (1 - t[..., 0]) * np.log(1 - p)).mean(axis=(1, 2))
    values = []
    for image in range(len(z)):
        total = weight = 0.0
        for row in range(z.shape[1]):
            for column in range(z.shape[2]):
                known = [i for i in range(1, z.shape[3]) if t[image, row, column, i] > 0]
                if known:
                    true = [t[image, row, column, i] / (1 - t[image, row, column, i]) for i in known]
                    found = [np.exp(z[image, row, column, i]) for i in known]
                    error = np.mean(np.abs(np.subtract(true, found))) / max(np.mean(true), 1 / 8)
                    total += t[image, row, column, 0] * error
                    weight += t[image, row, column, 0]
        values.append(total / max(weight, 1e-6))
    return bce + values


def test_rays_equal_a_loop_over_pixels(rng):
    logits = jnp.asarray(rng.normal(size=(2, 4, 5, 7)), jnp.float32)
    targets = rng.integers(0, 255, (2, 4, 5, 7)) / 255
    targets[:, :2, 1:, 1:] = 0
    targets[1, ..., 1:] = 0
    got = HEAD_LOSSES["rays"](logits, jnp.asarray(targets, jnp.float32))
    np.testing.assert_allclose(got, rays_by_loop(logits, targets), rtol=1e-5)


def test_right_rays_cost_nothing_and_extreme_ones_keep_a_gradient(rng):
    targets = rng.integers(1, 240, (1, 4, 4, 5)) / 255
    targets[..., 0] = 1
    logits = np.log(targets / (1 - np.minimum(targets, 254 / 255)))
    logits[..., 0] = 30
    loss = lambda z: HEAD_LOSSES["rays"](z, jnp.asarray(targets, jnp.float32)).sum()  # noqa: E731
    assert loss(jnp.asarray(logits, jnp.float32)) < 1e-4
    for level in (-300.0, 300.0):
        assert np.isfinite(jax.grad(loss)(jnp.full(logits.shape, level, jnp.float32))).all()
