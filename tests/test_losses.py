import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cervseg_jax.losses import LOSSES, bce_loss, dice_coef, iou_coef, soft_dice_loss

POOLED = ("dice", "bce_dice", "iou", "bce_iou")


def random_pair(rng, shape=(3, 8, 6, 1)):
    logits = rng.normal(0, 3, shape).astype(np.float32)
    masks = (rng.random(shape) < 0.3).astype(np.float32)
    return logits, masks


def plain(name, logits, masks, valid):
    """All losses as loops over float64 numbers."""
    logits, masks = logits[valid > 0].astype(np.float64), masks[valid > 0].astype(np.float64)
    bce, inter, probs_sum, masks_sum, dice_images = [], 0.0, 0.0, 0.0, []
    for image, mask in zip(logits, masks, strict=True):
        i = p_sum = m_sum = 0.0
        for z, y in zip(image.ravel(), mask.ravel(), strict=True):
            p = 1 / (1 + np.exp(-z))
            bce.append(-(y * np.log(p) + (1 - y) * np.log1p(-p)))
            i, p_sum, m_sum = i + p * y, p_sum + p, m_sum + y
        dice_images.append(1 - (2 * i + 1) / (p_sum + m_sum + 1))
        inter, probs_sum, masks_sum = inter + i, probs_sum + p_sum, masks_sum + m_sum
    bce, soft = np.mean(bce), np.mean(dice_images)
    dice = 1 - (2 * inter + 1) / (probs_sum + masks_sum + 1)
    iou = 1 - inter / (probs_sum + masks_sum - inter)
    return {
        "bce": bce,
        "soft_dice": soft,
        "bce_soft_dice": (bce + soft) / 2,
        "dice": dice,
        "bce_dice": (bce + dice) / 2,
        "iou": iou,
        "bce_iou": (bce + iou) / 2,
    }[name]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("valid", [(1, 1, 1), (1, 0, 1)])
def test_equals_a_plain_loop(name, valid, rng):
    logits, masks = random_pair(rng)
    valid = np.float32(valid)
    with jax.numpy_rank_promotion("raise"):
        got = LOSSES[name](jnp.asarray(logits), jnp.asarray(masks), jnp.asarray(valid))
    np.testing.assert_allclose(got, plain(name, logits, masks, valid), rtol=2e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_perfect_and_inverted(name, rng):
    _, masks = random_pair(rng)
    valid = jnp.ones(3)
    right = LOSSES[name](jnp.asarray(40 * (2 * masks - 1)), jnp.asarray(masks), valid)
    wrong = LOSSES[name](jnp.asarray(-40 * (2 * masks - 1)), jnp.asarray(masks), valid)
    np.testing.assert_allclose(right, 0, atol=1e-6)
    assert wrong > 0.9


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_is_finite_and_reaches_saturated_pixels(name):
    logits = jnp.array([1e4, -1e4, 300.0, -300.0] * 4).reshape(1, 4, 4, 1)
    masks = jnp.array([0.0, 1.0, 1.0, 0.0] * 4).reshape(1, 4, 4, 1)
    gradient = jax.grad(lambda z: LOSSES[name](z, masks, jnp.ones(1)))(logits)
    assert jnp.isfinite(gradient).all()
    if name.startswith("bce"):
        assert abs(float(gradient[0, 0, 0, 0])) > 1e-3


@pytest.mark.parametrize("name", set(LOSSES) - {"iou", "bce_iou"})
def test_empty_mask(name):
    empty = jnp.zeros((1, 4, 4, 1))
    assert LOSSES[name](jnp.full((1, 4, 4, 1), -50.0), empty, jnp.ones(1)) < 1e-6
    assert LOSSES[name](jnp.full((1, 4, 4, 1), 50.0), empty, jnp.ones(1)) > 0.9


def test_bfloat16_logits_are_summed_in_float32(rng):
    logits, masks = random_pair(rng, (1, 256, 256, 1))
    low = jnp.asarray(logits, jnp.bfloat16)
    for function in (bce_loss, soft_dice_loss):
        np.testing.assert_allclose(
            function(low, jnp.asarray(masks)), function(low.astype(jnp.float32), jnp.asarray(masks)), rtol=1e-6
        )


def test_soft_dice_refuses_a_smoothing_of_zero():
    with pytest.raises(ValueError, match="smooth must be positive, got 0"):
        soft_dice_loss(jnp.zeros((1, 2, 2, 1)), jnp.zeros((1, 2, 2, 1)), smooth=0.0)


def test_wrong_shapes_are_refused():
    with pytest.raises(Exception, match="bce_loss"):
        bce_loss(jnp.zeros((1, 2, 2, 1)), jnp.zeros((1, 3, 2, 1)))


def test_golden_values_from_logits(golden):
    stored = np.load(golden / "losses.npz")
    logits, masks = jnp.asarray(stored["logits|logits"]), jnp.asarray(stored["logits|y_true"])
    valid = jnp.ones(len(logits))
    for ours, theirs in (("bce", "binary_crossentropy"), ("bce_dice", "bce_dice_loss"), ("bce_iou", "bce_iou_loss")):
        want = stored[f"logits|keras_loss_from_sigmoid_op|{theirs}"]
        np.testing.assert_allclose(LOSSES[ours](logits, masks, valid), want, rtol=1e-5, err_msg=ours)


def test_golden_values_from_probabilities(golden):
    stored = np.load(golden / "losses.npz")
    names = sorted({name.split("|")[0] for name in stored.files} - {"logits"})
    for pair in names:
        with np.errstate(divide="ignore"):
            probs = stored[f"{pair}|y_pred"].astype(np.float64)
            logits = jnp.asarray(np.log(probs) - np.log1p(-probs), jnp.float32)
        masks = jnp.asarray(stored[f"{pair}|y_true"])
        valid = jnp.ones(len(logits))
        np.testing.assert_allclose(
            dice_coef(logits, masks, valid), stored[f"{pair}|raw|dice_coef"], rtol=1e-5, err_msg=pair
        )
        np.testing.assert_allclose(
            iou_coef(logits, masks, valid), stored[f"{pair}|raw|iou_coef"], rtol=1e-5, err_msg=pair
        )
