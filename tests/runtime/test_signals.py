"""A signal at any stage of a training: the state is saved, and the same command ends as an uninterrupted run does."""

import signal

import pytest

from cervseg_jax.runs import checkpoint
from cervseg_jax.training import epochs, loop
from tests.helpers import assert_same_run, run, run_process


def raise_within(monkeypatch, owner, name, *, call=1):
    """Sends SIGTERM to this process while a function is called for the given time."""
    original, calls = getattr(owner, name), []

    def disturbed(*args, **kwargs):
        calls.append(name)
        if len(calls) == call:
            signal.raise_signal(signal.SIGTERM)
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, disturbed)
    return calls


@pytest.mark.parametrize(
    ("owner", "name", "call", "code"),
    [
        pytest.param(loop, "_compile", 1, 75, marks=pytest.mark.slow),
        pytest.param(epochs, "train_batches", 1, 75, marks=pytest.mark.slow),
        (epochs, "evaluate", 2, 75),
        pytest.param(epochs, "write_previews", 1, 75, marks=pytest.mark.slow),
        pytest.param(epochs, "save_weights", 1, 75, marks=pytest.mark.slow),
        pytest.param(checkpoint.Checkpoints, "save", 1, 75, marks=pytest.mark.slow),
        (checkpoint.Checkpoints, "save", 3, 0),  # the last one
        pytest.param(loop, "write_history", 1, 0, marks=pytest.mark.slow),  # after the last epoch
    ],
)
def test_one_signal(finished, tmp_path, monkeypatch, owner, name, call, code):
    config, folder, _ = finished
    given = ("train", config, "--run-dir", tmp_path)
    with monkeypatch.context() as patches:
        calls = raise_within(patches, owner, name, call=call)
        ended, _, stderr = run(*given)
    assert len(calls) >= call
    assert ended == code, stderr
    assert ("the state is saved, run the same command again" in stderr) == (code == 75)
    code, stdout, stderr = run(*given)
    assert code == 0, stderr
    assert "resumed from step" in stdout
    assert_same_run(tmp_path, folder)


def test_two_signals_end_at_once_and_the_saved_states_stay(finished, tmp_path):
    config, folder, _ = finished
    given = ("train", config, "--run-dir", tmp_path)
    command = (
        "import signal\n"
        "from cervseg_jax.training import epochs\n"
        "original = epochs.evaluate\n"
        "def twice(*args, **kwargs):\n"
        "    for _ in range(2): signal.raise_signal(signal.SIGTERM)\n"
        "    print('still here')\n"
        "    return original(*args, **kwargs)\n"
        "epochs.evaluate = twice\n"
    )
    code, stdout, _ = run_process(*given, prelude=command)
    assert code == 128 + signal.SIGTERM
    assert "still here" not in stdout
    assert run(*given)[0] == 0
    assert_same_run(tmp_path, folder)
