"""Figures for other programs, and the profiler's recording."""

import json
import struct
import sys

import pytest

from cervseg_jax.extras import install_command
from cervseg_jax.runs import trackers
from cervseg_jax.runs.log import EventLog
from tests.helpers import refused, run


def scalars_of(folder):
    """Reads event files: records of length, checksum, protocol buffer, checksum."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    found = []
    for path in sorted(folder.glob("events.out.tfevents.*")):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = event_pb2.Event.FromString(data[12 : 12 + length])
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
            data = data[16 + length :]
    return found


def test_tensorboard_gets_what_the_log_has_and_the_profiler_records(finished, tmp_path):
    config, _, _ = finished
    folder = tmp_path / "run"
    settings = ["train.trackers=[tensorboard]", "train.log_steps=2", "runtime.profile_steps=2"]
    settings += [f"data.root={config.parent / 'data'}", "train.epochs=2", "train.steps_per_epoch=5"]
    code, _, stderr = run("train", config, "--run-dir", folder, *(part for one in settings for part in ("--set", one)))
    assert code == 0, stderr
    events = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    scalars = scalars_of(folder / "tensorboard")
    for kind, name in (("epoch", "val_loss"), ("epoch", "learning_rate"), ("steps", "gradient_norm")):
        logged = [(event["step"], event[name]) for event in events if event["event"] == kind]
        written = [(step, value) for tag, step, value in scalars if tag == f"{kind}/{name}"]
        assert len(logged) >= 2
        assert [step for step, _ in written] == [step for step, _ in logged]
        assert [value for _, value in written] == pytest.approx([value for _, value in logged], rel=1e-6)
    assert list((folder / "profile").rglob("*.xplane.pb"))


def test_a_tracker_that_is_not_installed_is_named_before_training(finished, tmp_path, monkeypatch):
    config, _, _ = finished
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    arguments = ("--run-dir", tmp_path / "run", "--set", "train.trackers=[tensorboard]")
    message = refused(2, "train", config, *arguments, "--set", f"data.root={config.parent / 'data'}")
    assert install_command("tensorboard") in message
    assert "tensorboard or wandb" in refused(2, "train", config, "--set", "train.trackers=[mlflow]").replace("'", "")


def test_wandb_runs_offline_and_goes_on_under_one_name(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    for epoch in (1, 2):
        log = EventLog(tmp_path, trackers=["wandb"])
        log.write("epoch", step=10 * epoch, val_loss=1.0 / epoch)
        log.close()
    folders = list((tmp_path / "wandb").glob("offline-run-*"))
    assert len(folders) == 2
    assert all((tmp_path / "wandb_id.txt").read_text() in folder.name for folder in folders)


def test_only_finite_numbers_are_tracked():
    facts = {"step": 3, "loss": float("nan"), "mfu": None, "reason": "x", "rate": 2}
    assert trackers.tracked_values("steps", facts) == {"steps/rate": 2.0}
