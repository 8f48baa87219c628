import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage
from skimage.metrics import structural_similarity

from cervseg_jax.losses import LOSSES, bce_loss, dice_coef, iou_coef, lovasz_loss, soft_dice_loss, ssim_loss

POOLED = ("dice", "bce_dice", "iou", "bce_iou")


def random_pair(rng, shape=(3, 14, 13, 1)):
    logits = rng.normal(0, 3, shape).astype(np.float32)
    masks = (rng.random(shape) < 0.3).astype(np.float32)
    return logits, masks


def plain(name, logits, masks, valid):
    """All losses as loops over float64 numbers, or by the definitions of NumPy, SciPy and scikit-image."""
    logits, masks = logits[valid > 0].astype(np.float64), masks[valid > 0].astype(np.float64)
    bce, inter, probs_sum, masks_sum, dice_images, focal, tversky = [], 0.0, 0.0, 0.0, [], [], []
    for image, mask in zip(logits, masks, strict=True):
        i = p_sum = m_sum = 0.0
        for z, y in zip(image.ravel(), mask.ravel(), strict=True):
            p = 1 / (1 + np.exp(-z))
            bce.append(-(y * np.log(p) + (1 - y) * np.log1p(-p)))
            focal.append(-0.25 * (1 - p) ** 2 * np.log(p) if y else -0.75 * p**2 * np.log1p(-p))
            i, p_sum, m_sum = i + p * y, p_sum + p, m_sum + y
        dice_images.append(1 - (2 * i + 1) / (p_sum + m_sum + 1))
        tversky.append(1 - (i + 1) / (i + 0.3 * (p_sum - i) + 0.7 * (m_sum - i) + 1))
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
        "focal": np.mean(focal),
        "tversky": np.mean(tversky),
        "lovasz": np.mean([plain_lovasz(z.ravel(), y.ravel()) for z, y in zip(logits, masks, strict=True)]),
        "boundary_bce": np.mean([plain_boundary(z[..., 0], y[..., 0]) for z, y in zip(logits, masks, strict=True)]),
        "basnet_hybrid": (bce + iou + np.mean([plain_ssim(z, y) for z, y in zip(logits, masks, strict=True)])) / 3,
    }[name]


def plain_lovasz(logits, mask):
    """The extension of the Jaccard loss: sorted errors times what each wrong pixel adds to it."""
    errors = 1 - logits * (2 * mask - 1)
    order, total, before = np.argsort(-errors, kind="stable"), 0.0, 0.0
    wrong = np.zeros(len(mask), bool)
    for index in order:
        wrong[index] = True
        predicted = np.where(wrong, 1 - mask, mask)
        jaccard = 1 - (predicted * mask).sum() / np.maximum(predicted, mask).sum()
        total += max(errors[index], 0) * (jaccard - before)
        before = jaccard
    return total


def plain_boundary(logits, mask):
    gray = ndimage.grey_dilation(mask, size=5, mode="nearest") - ndimage.grey_erosion(mask, size=5, mode="nearest")
    weights = 1 + 4 * gray
    losses = np.logaddexp(0, logits) - logits * mask
    return (weights * losses).sum() / weights.sum()


def plain_ssim(logits, mask):
    probs = 1 / (1 + np.exp(-logits[..., 0]))
    _, full = structural_similarity(
        probs, mask[..., 0], data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
    )
    return 1 - full[5:-5, 5:-5].mean()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("valid", [(1, 1, 1), (1, 0, 1)])
def test_equals_a_plain_loop(name, valid, rng):
    logits, masks = random_pair(rng)
    valid = np.float32(valid)
    with jax.numpy_rank_promotion("raise"):
        got = LOSSES[name](jnp.asarray(logits), jnp.asarray(masks), jnp.asarray(valid))
    np.testing.assert_allclose(got, plain(name, logits, masks, valid), rtol=1e-5 if name == "basnet_hybrid" else 2e-6)


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
    logits = jnp.array([1e4, -1e4, 300.0, -300.0] * 36).reshape(1, 12, 12, 1)
    masks = jnp.array([0.0, 1.0, 1.0, 0.0] * 36).reshape(1, 12, 12, 1)
    gradient = jax.grad(lambda z: LOSSES[name](z, masks, jnp.ones(1)))(logits)
    assert jnp.isfinite(gradient).all()
    if name.startswith("bce"):
        assert abs(float(gradient[0, 0, 0, 0])) > 1e-3


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"iou", "bce_iou", "basnet_hybrid"}))
def test_empty_mask(name):
    empty = jnp.zeros((1, 14, 14, 1))
    assert LOSSES[name](jnp.full((1, 14, 14, 1), -50.0), empty, jnp.ones(1)) < 1e-6
    assert LOSSES[name](jnp.full((1, 14, 14, 1), 50.0), empty, jnp.ones(1)) > 0.9


def test_arguments_change_what_they_say(rng):
    logits, masks = (jnp.asarray(array) for array in random_pair(rng))
    valid = jnp.ones(3)
    same = [
        ("focal", {"gamma": 0.0, "nucleus_weight": 0.5}, 0.5 * LOSSES["bce"](logits, masks, valid)),
        ("tversky", {"false_positives": 0.5, "false_negatives": 0.5, "smooth": 0.5}, None),
        ("boundary_bce", {"boundary_weight": 1.0}, LOSSES["bce"](logits, masks, valid)),
        ("bce_soft_dice", {"dice_share": 1.0}, LOSSES["soft_dice"](logits, masks, valid)),
    ]
    for name, args, want in same:
        want = LOSSES["soft_dice"](logits, masks, valid) if want is None else want
        np.testing.assert_allclose(LOSSES[name](logits, masks, valid, **args), want, rtol=1e-5, err_msg=name)


def test_lovasz_of_hard_scores_is_the_jaccard_loss(rng):
    masks = (rng.random((1, 9, 9, 1)) < 0.4).astype(np.float32)
    predicted = (rng.random((1, 9, 9, 1)) < 0.4).astype(np.float32)
    jaccard = 1 - (masks * predicted).sum() / np.maximum(masks, predicted).sum()
    # A wrong pixel with a score of 1 has the error 2, a right one 0.
    np.testing.assert_allclose(lovasz_loss(jnp.asarray(2 * predicted - 1), jnp.asarray(masks)), 2 * jaccard, rtol=1e-5)


def test_ssim_needs_room_for_its_window():
    with pytest.raises(ValueError, match="at least 11 pixels"):
        ssim_loss(jnp.zeros((1, 10, 20, 1)), jnp.zeros((1, 10, 20, 1)))


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
    for ours, theirs in (
        ("bce", "binary_crossentropy"),
        ("bce_dice", "bce_dice_loss"),
        ("bce_iou", "bce_iou_loss"),
        ("basnet_hybrid", "basnet_hybrid_loss"),
    ):
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
        # TensorFlow's float32 windows are up to 7e-5 off float64 (ours 4e-6, see `plain_ssim`).
        np.testing.assert_allclose(ssim_loss(logits, masks), stored[f"{pair}|raw|ssim_loss"], atol=1e-4, err_msg=pair)
