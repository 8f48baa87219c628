"""Input that does not come is reported while it is waited for."""

import time

from cervseg_jax.training.watchdog import InputWatchdog


def slow(seconds):
    for number, pause in enumerate(seconds):
        time.sleep(pause)
        yield number


def test_a_batch_that_does_not_come_is_reported_again_and_again():
    warnings = []
    with InputWatchdog(warnings.append, patience_seconds=0.2) as watch:
        batches = slow([0.0, 0.9])
        assert watch.next(batches)[0] == 0
        time.sleep(0.5)  # a long step is not a long wait
        assert warnings == []
        batch, wait = watch.next(batches)
    assert batch == 1
    assert wait >= 0.9
    assert 2 <= len(warnings) <= 4
    assert "data.root" in warnings[0]


def test_batches_one_by_one_are_watched_too():
    warnings = []
    with InputWatchdog(warnings.append, patience_seconds=0.2) as watch:
        assert list(watch.iterate(slow([0.0, 0.5, 0.0]))) == [0, 1, 2]
    assert warnings


def test_errors_of_the_input_pass_through():
    def broken():
        raise ValueError("image 7")
        yield

    with InputWatchdog(lambda text: None) as watch:
        try:
            watch.next(broken())
        except ValueError as error:
            assert str(error) == "image 7"
        else:
            raise AssertionError
