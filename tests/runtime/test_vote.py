"""Agreement of processes; several processes are simulated by one that holds all devices."""

import jax
import pytest

from cervseg_jax.runtime import signals
from cervseg_jax.runtime.distributed import make_all_reduce_max
from cervseg_jax.runtime.mesh import make_mesh
from cervseg_jax.runtime.signals import StopRequest, StopVote, Vote
from cervseg_jax.schema import MeshConfig


@pytest.fixture
def mesh():
    return make_mesh(MeshConfig(data=2, fsdp=2, spatial=2), batch_size=8)


def test_the_largest_value_arrives_on_every_device(mesh):
    all_reduce_max = make_all_reduce_max(mesh)
    result = all_reduce_max(2)
    assert int(result) == 2
    assert result.sharding.is_fully_replicated and result.sharding.device_set == set(mesh.devices.flat)
    assert int(all_reduce_max(0)) == 0


def test_a_single_process_acts_on_its_own_vote_and_computes_nothing(mesh, monkeypatch):
    monkeypatch.setattr(signals, "make_all_reduce_max", lambda mesh: pytest.fail("a single process reduces nothing"))
    stop, is_old = StopRequest(), False
    vote = StopVote(stop, lambda: is_old, mesh)
    vote.cast()
    assert vote.global_vote == Vote.NOTHING
    is_old = True
    assert vote.global_vote == Vote.SAVE
    stop.signal_name = "SIGTERM"
    assert vote.global_vote == Vote.STOP
    assert vote.cause == "SIGTERM"


def test_several_processes_act_on_the_votes_cast_last(mesh, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    stop = StopRequest()
    vote = StopVote(stop, lambda: False, mesh)
    assert vote.global_vote == Vote.NOTHING  # nothing was cast
    vote.cast()
    stop.signal_name = "SIGTERM"  # too late for this step: others have not seen it
    assert vote.global_vote == Vote.NOTHING
    vote.cast()
    assert vote.global_vote == Vote.STOP
