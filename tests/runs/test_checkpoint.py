import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cervseg_jax.engine.optimizer import make_optimizer
from cervseg_jax.engine.state import TrainState, create_state
from cervseg_jax.errors import CheckpointError, ConfigError
from cervseg_jax.runs.checkpoint import Checkpoints
from cervseg_jax.runs.checksums import digest
from tests.helpers import ROOT


def make_state(step, *, width=64, dtype=jnp.float32):
    rng = np.random.default_rng(step)
    params = {"a/kernel": jnp.asarray(rng.normal(size=(width, 7)), dtype), "a/bias": jnp.zeros(7)}
    state = create_state(params, {"n/mean": jnp.full(3, float(step))}, make_optimizer(clip_value=0.5))
    return TrainState(jnp.int32(step), state.params, state.model_state, state.opt_state, {})


@pytest.fixture
def folder(tmp_path):
    """Two states, 1 and 2."""
    saved = Checkpoints(tmp_path / "c", keep=2)
    for step in (1, 2):
        saved.save(step, make_state(step), {"epoch": step, "rate": 0.1 + step})
    saved.wait()
    saved.close()
    return tmp_path / "c"


def restore(folder, target=None, warn=lambda text: None):
    opened = Checkpoints(folder, keep=2)
    try:
        return opened.restore_newest(make_state(0) if target is None else target, warn=warn)
    finally:
        opened.close()


def test_newest_state_comes_back_exactly(folder):
    restored = restore(folder)
    assert digest(restored.state) == digest(make_state(2))
    assert restored.meta == {"epoch": 2, "rate": 2.1}
    assert isinstance(restored.state, TrainState)
    assert jax.tree.structure(restored.state) == jax.tree.structure(make_state(2))


def test_nothing_saved_is_none(tmp_path):
    assert restore(tmp_path / "new") is None


def test_only_the_newest_are_kept(folder):
    opened = Checkpoints(folder, keep=2)
    opened.save(5, make_state(5), {})
    opened.wait()
    opened.close()
    assert numbers_of(folder) == [2, 5]


def numbers_of(folder):
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


def test_states_whose_metadata_say_so_are_kept_besides(tmp_path):
    """Also those of an earlier process, whatever their numbers; of a damaged one nobody knows, so it stays."""

    def saved(numbers, keeps_forever):
        opened = Checkpoints(tmp_path / "c", keep=1, keeps_forever=keeps_forever)
        for number in numbers:
            opened.save(number, make_state(number), {"epoch": number})
        opened.wait()
        opened.close()
        return numbers_of(tmp_path / "c")

    assert saved(range(1, 5), lambda meta: meta["epoch"] % 2 == 0) == [2, 4]
    assert saved([6], lambda meta: meta["epoch"] in (2, 6)) == [2, 6]
    (tmp_path / "c" / "2" / "meta" / "metadata").write_bytes(b"")
    assert saved([7, 8], lambda meta: meta["epoch"] == 6) == [2, 6, 8]
    assert saved([9], None) == [9]


@pytest.mark.parametrize("seed", range(25))
def test_any_damage_to_the_newest_goes_back_to_the_one_before_or_is_harmless(folder, seed):
    rng = np.random.default_rng(seed)
    files = sorted(path for path in (folder / "2").rglob("*") if path.is_file())
    path = files[int(rng.integers(len(files)))]
    data = bytearray(path.read_bytes())
    kind = ("flip", "cut", "zero", "delete")[seed % 4]
    if kind == "delete":
        path.unlink()
    elif kind == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif kind == "zero":
        path.write_bytes(bytes(len(data)))
    elif data:
        data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
    warnings = []
    restored = restore(folder, warn=warnings.append)
    step = int(restored.state.step)
    assert digest(restored.state) == digest(make_state(step))
    assert restored.meta == {"epoch": step, "rate": 0.1 + step}
    assert (step == 1) == (len(warnings) == 1)
    if warnings:
        assert "state 2" in warnings[0]
        assert "going back to state 1" in warnings[0]


def test_a_damaged_state_is_replaced_when_its_number_is_saved_again(folder):
    (folder / "2" / "meta" / "metadata").write_bytes(b"")
    opened = Checkpoints(folder, keep=2)
    assert opened.restore_newest(make_state(0), warn=lambda message: None).state.step == 1
    opened.save(2, make_state(2), {"again": True})
    opened.wait()
    opened.close()
    warnings = []
    restored = restore(folder, warn=warnings.append)
    assert (warnings, restored.meta) == ([], {"again": True})
    assert digest(restored.state) == digest(make_state(2))


def test_all_damaged_is_an_error_never_a_fresh_start(folder):
    for step in ("1", "2"):
        shutil.rmtree(folder / step / "state")
    with pytest.raises(CheckpointError, match="(?s)no usable state.*state 2.*state 1.*--fresh"):
        restore(folder)


def test_stray_folders_do_not_pass_for_states(folder):
    (folder / "99").mkdir()
    warnings = []
    assert int(restore(folder, warn=warnings.append).state.step) == 2


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (make_state(0, width=32), r"is float32\[64, 7\], the config needs float32\[32, 7\]"),
        (make_state(0, dtype=jnp.bfloat16), "the config needs bfloat16"),
        (create_state({"b": jnp.zeros(3)}, {}, make_optimizer(clip_value=0.5)), "the config needs none of that name"),
    ],
)
def test_another_model_is_named(folder, target, message):
    with pytest.raises(CheckpointError, match=message):
        restore(folder, target)


def test_donated_buffers_do_not_leak_into_a_save(tmp_path):
    """The state is overwritten on the device while the save is still under way."""
    saved = Checkpoints(tmp_path / "c", keep=2)
    add = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf + 1, state), donate_argnums=0)
    state = make_state(3, width=200_000)
    want = digest(state)
    saved.save(3, state, {})
    for _ in range(5):
        state = add(state)
    saved.wait()
    saved.close()
    assert digest(restore(tmp_path / "c", make_state(0, width=200_000)).state) == want


def test_a_disk_without_room_is_one_message_and_the_states_stay(folder, monkeypatch):
    opened = Checkpoints(folder, keep=2)
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(make_state(3)))
    full = shutil.disk_usage(folder)._replace(free=needed - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    with pytest.raises(CheckpointError, match="could not be saved: it takes .* MiB left; earlier states are kept"):
        opened.save(3, make_state(3), {})
    monkeypatch.undo()
    opened.close()
    assert digest(restore(folder).state) == digest(make_state(2))


def test_a_save_that_fails_in_the_background_is_a_checkpoint_error(folder, monkeypatch):
    opened = Checkpoints(folder, keep=2)

    def fail():
        raise OSError("No space left on device")

    monkeypatch.setattr(opened, "_finish", fail)
    opened.save(3, make_state(3), {})
    with pytest.raises(CheckpointError, match="could not be saved: No space left on device"):
        opened.wait()
    opened.close()


def test_a_save_that_fails_at_the_very_end_is_a_checkpoint_error(folder, monkeypatch):
    opened = Checkpoints(folder, keep=2)

    def fail():
        raise ValueError("RESOURCE_EXHAUSTED: Error writing")

    monkeypatch.setattr(opened._manager, "close", fail)
    with pytest.raises(CheckpointError, match="could not be saved: RESOURCE_EXHAUSTED"):
        opened.close()
    monkeypatch.undo()
    opened.close()


def test_a_folder_that_cannot_be_made_is_one_message(tmp_path):
    (tmp_path / "c").write_text("a file")
    with pytest.raises(ConfigError, match="c: the folder cannot be made"):
        Checkpoints(tmp_path / "c", keep=1)


def test_random_faults_lose_nothing(tmp_path):
    """What the campaign does by the hundred: damage, damage everywhere, writes and calls that fail, kills."""
    num_calls, num_kills = (8, 3) if shutil.which("cc") else (0, 0)
    counts = ("--damages", "12", "--all-damaged", "3", "--failed-writes", "8", "--failed-calls", str(num_calls))
    script = ROOT / "scripts" / "fault_campaign.py"
    done = subprocess.run(
        [sys.executable, script, tmp_path / "faults", *counts, "--killed-calls", str(num_kills), "--seed", "1"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "WRONG" not in done.stdout
    assert "| all states damaged | error names each of them | 3 |" in done.stdout
    outcomes = [line.split(" | ") for line in done.stdout.splitlines() if " | " in line]
    assert sum(int(line[2].strip(" |")) for line in outcomes[1:]) == 23 + num_calls + num_kills
