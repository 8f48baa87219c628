"""Intervals and tests in simulations whose truth is known."""

import numpy as np
import pytest
from scipy import stats

from cervseg_jax.metrics.bootstrap import bootstrap_mean, bootstrap_sums, compare_paired, rank_correlation


@pytest.mark.parametrize("num_groups", [10, 30])
@pytest.mark.parametrize("kind", ["skewed scores", "images of few sources"])
def test_intervals_cover_the_truth_as_often_as_they_say(num_groups, kind):
    rng = np.random.default_rng(1)
    hits = 0
    for seed in range(400):
        if kind == "skewed scores":
            values, groups, truth = rng.beta(8, 2, num_groups), None, 0.8
        else:
            groups = np.repeat(np.arange(num_groups), rng.integers(1, 5, num_groups))
            values, truth = 0.8 + rng.normal(0, 0.1, num_groups)[groups] + rng.normal(0, 0.05, len(groups)), 0.8
            groups = [str(group) for group in groups]
        interval = bootstrap_mean(values, groups, seed=seed)
        hits += interval.low <= truth <= interval.high
    assert 0.91 <= hits / 400 <= 0.98


def test_images_of_one_source_do_not_count_as_independent():
    rng = np.random.default_rng(0)
    source = rng.normal(0, 1, 8)
    values, groups = np.repeat(source, 20), [str(group) for group in np.repeat(np.arange(8), 20)]
    wide, narrow = bootstrap_mean(values, groups), bootstrap_mean(values)
    assert wide.high - wide.low > 3 * (narrow.high - narrow.low)
    assert wide.mean == pytest.approx(values.mean())


def test_the_interval_is_scipys_for_many_images():
    values = np.random.default_rng(3).beta(8, 2, 400)
    ours = bootstrap_mean(values)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=4000, rng=0).confidence_interval
    assert ours.low == pytest.approx(theirs.low, abs=0.0015)
    assert ours.high == pytest.approx(theirs.high, abs=0.0015)


def test_undefined_values_are_left_out_and_one_source_has_no_interval():
    assert bootstrap_mean(np.array([1.0, np.nan, 3.0])).mean == 2.0
    alone = bootstrap_mean(np.array([1.0, 3.0]), ["a", "a"])
    assert alone.mean == 2.0
    assert np.isnan([alone.low, alone.high]).all()
    assert np.isnan(bootstrap_mean(np.array([np.nan]))).all()


def test_a_ratio_that_is_undefined_for_every_resample_has_no_interval_and_no_warning():
    interval = bootstrap_sums(lambda sums: sums[..., 0] * np.nan, np.ones((4, 1)), range(4))
    assert np.isnan(interval).all()


def test_pooled_ratios_are_resampled_whole():
    rng = np.random.default_rng(5)
    whole = rng.integers(50, 500, 40)
    part = rng.binomial(whole, 0.3)
    interval = bootstrap_sums(lambda sums: sums[..., 0] / sums[..., 1], np.stack([part, whole], axis=1), range(40))
    assert interval.mean == pytest.approx(part.sum() / whole.sum())
    assert interval.low < 0.3 < interval.high
    assert interval.high - interval.low < 0.05


def test_a_difference_that_is_not_there_is_found_one_time_in_twenty():
    rng = np.random.default_rng(7)
    found = 0
    for _ in range(500):
        easy = rng.beta(8, 2, 30)  # images are hard or easy for both
        one, other = easy + rng.normal(0, 0.03, 30), easy + rng.normal(0, 0.03, 30)
        result = compare_paired(one, other, [str(image) for image in range(30)])
        found += result.p_value < 0.05
    assert 0.025 <= found / 500 <= 0.075


def test_a_planted_difference_is_found_and_measured():
    rng = np.random.default_rng(8)
    hits = powers = 0
    for _ in range(100):
        easy = rng.beta(8, 2, 40)
        one, other = easy + 0.02 + rng.normal(0, 0.02, 40), easy + rng.normal(0, 0.02, 40)
        result = compare_paired(one, other, [str(image) for image in range(40)])
        powers += result.p_value < 0.05 and result.difference.mean > 0
        hits += result.difference.low <= 0.02 <= result.difference.high
    assert powers >= 95
    assert hits >= 90


def test_the_test_is_scipys_on_the_means_of_sources():
    rng = np.random.default_rng(9)
    one, other = rng.random(12), rng.random(12)
    one[0] = np.nan
    groups = ["a", "a", "b", "b", "c", "c", "d", "d", "e", "e", "f", "f"]
    difference = one - other
    means = [np.nanmean(difference[2 * number : 2 * number + 2]) for number in range(6)]
    result = compare_paired(one, other, groups)
    assert result.p_value == pytest.approx(stats.wilcoxon(means).pvalue)
    assert (result.num_images, result.num_groups) == (11, 6)
    assert result.num_better + result.num_worse == 11


def test_equal_methods_have_no_p_value():
    result = compare_paired(np.ones(5), np.ones(5), list("abcde"))
    assert np.isnan(result.p_value)
    assert result.difference.mean == result.difference.low == result.difference.high == 0


def test_rank_correlation_leaves_undefined_values_out():
    assert rank_correlation(np.array([1.0, 2, 3, 9]), np.array([5.0, 4, 1, np.nan])) == pytest.approx(-1)
    assert np.isnan(rank_correlation(np.array([1.0, 2]), np.array([1.0, 2])))
    assert np.isnan(rank_correlation(np.array([1.0, 1, 1]), np.array([1.0, 2, 3])))
