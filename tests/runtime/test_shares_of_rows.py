"""Rows that several processes compute are put together in order; the processes are simulated by their messages."""

import io
from typing import NamedTuple

import jax
import numpy as np
import pytest

from cervseg_jax.runtime import distributed
from cervseg_jax.runtime.distributed import allgather_rows, share_of


class Rows(NamedTuple):
    values: np.ndarray
    pairs: np.ndarray


@pytest.mark.parametrize(("count", "processes"), [(7, 3), (2, 4), (0, 2), (5, 1)])
def test_rows_of_all_shares_are_the_rows_of_one_process(monkeypatch, count, processes):
    whole = Rows(np.arange(count) * 1.5, np.arange(2 * count).reshape(count, 2))
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    messages, shares = [], []
    for index in range(processes):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        shares.append(share_of(count))

        def keep(data):
            messages.append(data)
            return [data]

        monkeypatch.setattr(distributed, "allgather_bytes", keep)
        allgather_rows(shares[-1], jax.tree.map(lambda rows, own=shares[-1]: rows[list(own)], whole))
    assert sorted(place for share in shares for place in share) == list(range(count))
    monkeypatch.setattr(distributed, "allgather_bytes", lambda data: messages or [data])
    own = jax.tree.map(lambda rows: rows[list(shares[0])], whole)
    gathered = allgather_rows(shares[0], own)
    assert isinstance(gathered, Rows)
    for one, other in zip(gathered, whole, strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == other.dtype


def test_messages_hold_no_objects(monkeypatch):
    packed = io.BytesIO()
    np.savez(packed, np.array([0]), np.array([{}], object))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(distributed, "allgather_bytes", lambda data: [packed.getvalue()])
    with pytest.raises(ValueError, match="allow_pickle"):
        allgather_rows(range(1), np.zeros(1))
