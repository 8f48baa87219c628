"""Lines that `eval` prints of several seeds."""

import math

import pytest

from cervseg_jax.cli import eval as eval_command
from cervseg_jax.metrics.catalog import shown


def seed_summary(dice):
    return {f"{name}_mean": 0.5 for name in shown("tables", "pixels")} | {"dice_mean": dice}


@pytest.mark.parametrize(
    ("dices", "expected"),
    [
        ((0.5, 0.75), "0.6250 ± 0.1768"),
        ((0.5, math.nan, 0.75), "0.6250 ± 0.1768   (1 of 3 seeds have no value)"),
        ((math.nan, 0.5), "0.5000 ± nan   (1 of 2 seeds have no value)"),
        ((math.nan, math.nan), "nan ± nan   (2 of 2 seeds have no value)"),
    ],
)
def test_seeds_without_a_score_are_counted_and_left_out(dices, expected):
    lines = eval_command._seed_lines([seed_summary(dice) for dice in dices])
    assert lines[0] == f"\n{len(dices)} seeds, mean and standard deviation:"
    (line,) = [line for line in lines if line.split()[0] == "dice"]
    assert line.split(maxsplit=1)[1] == expected
    (iou,) = [line for line in lines if line.split()[0] == "iou"]
    assert iou.split(maxsplit=1)[1] == "0.5000 ± 0.0000"
