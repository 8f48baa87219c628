import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from cervseg_jax.errors import DataError
from cervseg_jax.runtime.threads import map_ahead, map_files


def halved(number):
    if number % 2:
        raise DataError(f"{number}: is odd")
    return number // 2


def test_results_and_problems_keep_the_order_of_the_entries():
    advanced, problems = [], []
    made = map_files(halved, range(40), on_progress=lambda: advanced.append(1), problems=problems, threads=8)
    assert made == list(range(20))
    assert problems == [f"{number}: is odd" for number in range(1, 40, 2)]
    assert len(advanced) == 40


def test_without_a_list_of_problems_the_first_error_ends_the_call():
    with pytest.raises(DataError, match="^1: is odd"):
        map_files(halved, range(40), threads=1)


def test_other_errors_cancel_what_has_not_begun():
    begun, gate = [], threading.Event()

    def work(number):
        begun.append(number)
        if number == 0:
            gate.set()
            raise KeyError("defect")
        gate.wait(5)

    with pytest.raises(KeyError):
        map_files(work, range(1000), problems=[], threads=2)
    assert len(begun) < 1000


def test_entries_are_taken_as_their_results_are_used():
    taken = []

    def entries():
        for number in range(20):
            taken.append(number)
            yield number

    with ThreadPoolExecutor(2) as pool:
        results = map_ahead(pool, lambda number: number**2, entries(), ahead=3)
        for number in range(20):
            assert next(results) == number**2
            assert len(taken) <= number + 4
        assert list(results) == []
