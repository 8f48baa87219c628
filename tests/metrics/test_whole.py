"""Scores of nuclei that overlap, against plain loops over sets of pixels."""

import itertools

import numpy as np
import pytest

from cervseg_jax.extents import Extent, extents_of, layers_of, overlap_degrees
from cervseg_jax.metrics.instance import INSTANCE_METRICS, count_instances
from cervseg_jax.metrics.whole import DEGREES, count_by_degree, count_whole


def random_nuclei(rng, count):
    boxes = [(*rng.integers(0, 16, 2), *rng.integers(2, 9, 2)) for _ in range(count)]
    return [Extent(int(top), int(left), np.ones((height, width), bool)) for top, left, height, width in boxes]


def pixels(extent):
    return {(row + extent.top, column + extent.left) for row, column in np.argwhere(extent.inside)}


def most_pairs(truth, prediction, threshold):
    """The most pairs above the threshold, then the largest sum of IoU, of all one-to-one pairings, tried one by one."""
    best = (0, 0.0)
    small, large = sorted((truth, prediction), key=len)
    for option in itertools.permutations(large, len(small)):
        values = [len(a & b) / len(a | b) for a, b in zip(small, option, strict=True)]
        values = [value for value in values if value > threshold]
        best = max(best, (len(values), sum(values)))
    return best


@pytest.mark.parametrize("seed", range(25))
def test_counts_equal_a_loop_over_sets(seed):
    rng = np.random.default_rng(seed)
    truth = random_nuclei(rng, rng.integers(0, 6))
    moved = [extent.moved(int(rng.integers(-1, 2)), int(rng.integers(-1, 2))) for extent in truth for _ in range(2)]
    prediction = [moved[index] for index in rng.permutation(len(moved))[:5]] + random_nuclei(rng, 1)
    counts = count_whole(truth, prediction)
    own, its = [pixels(extent) for extent in truth], [pixels(extent) for extent in prediction]
    number, total = most_pairs(own, its, 0.5)
    assert counts.matched[0, 0] == number
    assert counts.iou_sum[0] == pytest.approx(total)
    shared = union = 0
    used = set()
    for nucleus in own:
        values = [len(nucleus & other) / len(nucleus | other) for other in its]
        if values and max(values) > 0:
            best = int(np.argmax(values))
            used.add(best)
            shared, union = shared + len(nucleus & its[best]), union + len(nucleus | its[best])
        else:
            union += len(nucleus)
    union += sum(len(other) for index, other in enumerate(its) if index not in used)
    ties = [sorted(len(a & b) / len(a | b) for b in its)[-2:] for a in own]
    if all(len(pair) < 2 or pair[0] < pair[1] for pair in ties):  # among equals either may be taken
        assert (counts.aji_shared[0], counts.aji_union[0]) == (shared, union)


@pytest.mark.parametrize("seed", range(10))
def test_degrees_equal_a_loop_over_sets(seed):
    rng = np.random.default_rng(seed)
    truth = random_nuclei(rng, 6)
    sets = [pixels(extent) for extent in truth]
    expected = [
        max(len(one & other) / min(len(one), len(other)) for j, other in enumerate(sets) if j != i)
        for i, one in enumerate(sets)
    ]
    np.testing.assert_allclose(overlap_degrees(truth), expected)
    parts = count_by_degree(truth, truth)
    assert sum(part.num_truth[0] for part in parts.values()) == len(truth)
    for name, (above, up_to) in DEGREES.items():
        assert parts[name].num_truth[0] == sum(above < degree <= up_to for degree in expected)
        assert parts[name].matched[0, 0] == parts[name].num_truth[0]


def test_without_overlap_the_scores_are_those_of_label_maps():
    rng = np.random.default_rng(3)
    for _ in range(20):
        maps = [np.kron(rng.integers(0, 6, (5, 5)), np.ones((4, 4), int)) for _ in range(2)]
        maps = [np.where(labels > 0, labels, 0) for labels in maps]
        expected = count_instances(*maps)
        got = count_whole(*(list(extents_of(labels).values()) for labels in maps))
        for name, metric in INSTANCE_METRICS.items():
            np.testing.assert_allclose(metric(got), metric(expected), err_msg=name)


def test_a_nucleus_that_two_predictions_cover_is_found_once():
    truth = [Extent(0, 0, np.ones((10, 10), bool))]
    prediction = [Extent(0, 0, np.ones((10, 9), bool)), Extent(0, 0, np.ones((9, 10), bool))]
    assert count_whole(truth, prediction).matched[0, 0] == 1


@pytest.mark.parametrize("seed", range(10))
def test_layers_restore_all_nuclei(seed):
    rng = np.random.default_rng(seed)
    nuclei = {3 * index + 1: extent for index, extent in enumerate(random_nuclei(rng, 12))}
    labels, covered = layers_of(nuclei, shape=(26, 26))
    stack = np.zeros((26, 26), int)
    for label in sorted(nuclei, key=lambda label: -nuclei[label].area):
        for row, column in pixels(nuclei[label]):
            stack[row, column] = label
    areas = {label: len(pixels(extent)) for label, extent in nuclei.items()}
    differs = labels != stack
    assert all(areas[a] == areas[b] for a, b in zip(labels[differs], stack[differs], strict=True))
    restored = extents_of(labels, covered)
    assert {label: pixels(extent) for label, extent in restored.items()} == {
        label: pixels(extent) for label, extent in nuclei.items()
    }
