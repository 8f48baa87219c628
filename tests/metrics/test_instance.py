"""Scores of nuclei against plain loops over sets of pixels, written from the papers' formulas."""

import itertools

import numpy as np
import pytest
from jaxtyping import TypeCheckError
from scipy.ndimage import center_of_mass

from cervseg_jax import label_maps
from cervseg_jax.metrics import instance
from cervseg_jax.metrics.instance import INSTANCE_METRICS, count_instances

NUM_PAIRS = 150


def random_labels(rng, side=24):
    """A few overlapping boxes with odd labels; sometimes none."""
    labels = np.zeros((side, side), np.int32)
    for label in rng.choice(np.arange(1, 400), rng.integers(0, 7), replace=False):
        top, left = rng.integers(0, side - 2, 2)
        height, width = rng.integers(1, 10, 2)
        labels[top : top + height, left : left + width] = label
    return labels


def shaken(labels, rng):
    """The same nuclei moved, renumbered, some left out, some cut in two."""
    out = np.zeros_like(labels)
    for number, label in enumerate(np.unique(labels[labels > 0])):
        if rng.random() < 0.15:
            continue
        piece = np.roll(labels == label, tuple(rng.integers(-1, 2, 2)), (0, 1))
        out[piece] = 7 * number + 3
        if rng.random() < 0.2:
            columns = np.nonzero(piece.any(axis=0))[0]
            piece[:, : int(columns.mean())] = False
            out[piece] = 7 * number + 5
    return out


def as_sets(labels):
    return {
        int(label): {(int(row), int(column)) for row, column in np.argwhere(labels == label)}
        for label in np.unique(labels)
        if label
    }


def iou(one, other):
    return len(one & other) / len(one | other)


def best_pairing(rows, columns, gain):
    """Largest total gain over all ways to pair, tried one by one in the smaller direction."""
    rows, columns = list(rows), list(columns)
    if len(rows) > len(columns):
        return [(row, column) for column, row in best_pairing(columns, rows, lambda a, b: gain(b, a))]
    options = itertools.permutations(columns, len(rows))
    best = max(options, key=lambda option: sum(gain(row, column) for row, column in zip(rows, option, strict=True)))
    return [(row, column) for row, column in zip(rows, best, strict=True) if gain(row, column) > 0]


def slow_scores(truth, prediction):
    """All scores from sets; None where undefined."""
    true, predicted = as_sets(truth), as_sets(prediction)
    if not true and not predicted:
        return None
    shared = union = 0
    used = set()
    for pixels in true.values():
        overlapping = [label for label in predicted if pixels & predicted[label]]
        if not overlapping:
            union += len(pixels)
            continue
        chosen = max(overlapping, key=lambda label: iou(pixels, predicted[label]))
        used.add(chosen)
        shared += len(pixels & predicted[chosen])
        union += len(pixels | predicted[chosen])
    union += sum(len(pixels) for label, pixels in predicted.items() if label not in used)
    scores = {"aji": shared / union}

    pairs = best_pairing(true, predicted, lambda t, p: iou(true[t], predicted[p]))
    shared = sum(len(true[t] & predicted[p]) for t, p in pairs)
    union = sum(len(true[t] | predicted[p]) for t, p in pairs)
    union += sum(len(pixels) for label, pixels in true.items() if label not in {t for t, _ in pairs})
    union += sum(len(pixels) for label, pixels in predicted.items() if label not in {p for _, p in pairs})
    scores["aji_plus"] = shared / union

    values = [iou(t, p) for t in true.values() for p in predicted.values()]
    for threshold in (0.5, 0.6, 0.7, 0.8, 0.9):
        tp = sum(value > threshold for value in values)
        fp, fn = len(predicted) - tp, len(true) - tp
        scores[f"f1_{round(threshold * 100)}"] = tp / (tp + fp / 2 + fn / 2)
    matches = [value for value in values if value > 0.5]
    scores["rq"] = scores["f1_50"]
    scores["sq"] = float(np.mean(matches)) if matches else None
    scores["pq"] = scores["sq"] * scores["rq"] if matches else 0.0
    scores["count_error"] = len(predicted) - len(true)
    if true:
        split = [sum(len(t & p) > len(p) / 2 for p in predicted.values()) >= 2 for t in true.values()]
        scores["split_rate"] = sum(split) / len(true)
        merged = 0
        for p in predicted.values():
            inside = sum(len(t & p) > len(t) / 2 for t in true.values())
            merged += inside if inside >= 2 else 0
        scores["merge_rate"] = merged / len(true)
    return scores


def test_scores_equal_those_of_slow_loops_on_random_pairs(rng):
    num_empty = num_matches = 0
    for number in range(NUM_PAIRS):
        truth = random_labels(rng)
        prediction = shaken(truth, rng) if number % 2 else random_labels(rng)
        got = {name: metric(count_instances(truth, prediction))[0] for name, metric in INSTANCE_METRICS.items()}
        want = slow_scores(truth, prediction)
        if want is None:
            num_empty += 1
            assert all(np.isnan(value) for name, value in got.items() if name != "count_error")
            continue
        num_matches += want["rq"] > 0
        for name, value in want.items():
            if value is None:
                assert np.isnan(got[name])
            else:
                assert got[name] == pytest.approx(value, abs=1e-12), (name, number)
    assert num_empty > 5
    assert num_matches > NUM_PAIRS / 3


def test_detections_are_paired_one_to_one(rng):
    for _ in range(100):
        truth, prediction = random_labels(rng, 40), random_labels(rng, 40)
        one, other = (
            [np.array(center_of_mass(labels == label)) for label in np.unique(labels[labels > 0])]
            for labels in (truth, prediction)
        )
        near = {
            (i, j): 1e6 - np.linalg.norm(a - b)
            for i, a in enumerate(one)
            for j, b in enumerate(other)
            if np.linalg.norm(a - b) <= 12
        }
        want = len(best_pairing(range(len(one)), range(len(other)), lambda i, j, near=near: near.get((i, j), 0.0)))
        assert count_instances(truth, prediction).detected[0] == want


def test_merged_pair_and_split_nucleus():
    truth = np.zeros((20, 40), int)
    truth[5:15, 5:12], truth[5:15, 12:20] = 1, 2  # touching
    truth[5:15, 25:35] = 3
    prediction = np.zeros_like(truth)
    prediction[5:15, 5:20] = 9  # merges 1 and 2
    prediction[5:15, 25:30], prediction[5:15, 30:35] = 4, 5  # splits 3
    counts = count_instances(truth, prediction)
    assert instance.merge_rate(counts)[0] == pytest.approx(2 / 3)
    assert instance.split_rate(counts)[0] == pytest.approx(1 / 3)
    np.testing.assert_array_equal(label_maps.touching(truth), [True, True, False])
    near = count_instances(truth, prediction, touching_only=True)
    assert (near.num_truth[0], near.num_predicted[0]) == (2, 1)
    assert instance.merge_rate(near)[0] == 1.0
    assert instance.split_rate(near)[0] == 0.0


@pytest.mark.parametrize("filled", ["truth", "prediction"])
def test_one_side_empty_scores_zero(filled):
    labels = np.zeros((8, 8), int)
    labels[2:5, 2:5] = 1
    maps = {"truth": np.zeros_like(labels), "prediction": np.zeros_like(labels), filled: labels}
    counts = count_instances(maps["truth"], maps["prediction"])
    assert instance.aji(counts)[0] == instance.aji_plus(counts)[0] == instance.panoptic_quality(counts)[0] == 0
    assert np.isnan(instance.segmentation_quality(counts)[0])


def test_undefined_images_are_nan_and_pooled_scores_take_sums():
    labels = np.zeros((8, 8), int)
    labels[2:5, 2:5] = 1
    empty = np.zeros_like(labels)
    counts = instance.join_counts(
        [count_instances(labels, labels), count_instances(empty, empty), count_instances(labels, empty)]
    )
    np.testing.assert_array_equal(instance.panoptic_quality(counts), [1, np.nan, 0])
    total = instance.pooled(counts)
    assert instance.panoptic_quality(total)[0] == pytest.approx(2 / 3)
    assert instance.aji(total)[0] == 0.5


def test_different_shapes_are_refused():
    with pytest.raises(TypeCheckError, match="'prediction'.*\n.*i64\\[2,3\\]"):
        count_instances(np.zeros((2, 2), int), np.zeros((2, 3), int))
