import pytest

from cervseg_jax import console
from cervseg_jax.console import RateMeter, Reporter


class Clock:
    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(console, "time", clock)
    return clock


def advance(meter, clock, seconds, count=1):
    clock.now += seconds
    for _ in range(count):
        meter.advance()


def test_compiling_does_not_count_for_the_rate(clock):
    meter = RateMeter(12, done=2)
    advance(meter, clock, 30.0)
    assert meter.seconds_left is None
    assert meter.describe() == "30 s elapsed"
    for _ in range(4):
        advance(meter, clock, 2.0)
    assert meter.rate == pytest.approx(0.5)
    assert meter.seconds_left == pytest.approx(10.0)
    assert meter.describe() == "0.50/s, 38 s elapsed, 10 s left"


def test_units_that_arrive_in_batches(clock):
    meter = RateMeter(32)
    advance(meter, clock, 20.0, count=8)
    assert meter.rate is None
    advance(meter, clock, 4.0, count=8)
    assert meter.rate == pytest.approx(2.0)
    assert meter.seconds_left == pytest.approx(8.0)


def test_slow_units_are_shown_in_seconds_each(clock):
    meter = RateMeter(10)
    advance(meter, clock, 1.0)
    advance(meter, clock, 100.0)
    assert meter.describe() == "100 s each, 1 min 41 s elapsed, 13 min 20 s left"


def test_plain_lines_label_their_times(clock, capsys):
    with Reporter().progress("images", 10) as done:
        for _ in range(4):
            clock.now += 3.0
            done("note")
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "images: 2/10  0.33/s, 6 s elapsed, 24 s left  note",
        "images: 4/10  0.33/s, 12 s elapsed, 18 s left  note",
    ]
