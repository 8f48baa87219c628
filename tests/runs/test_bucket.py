"""Runs in a bucket: a server on this machine stands for it, with the real clients in front."""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from cervseg_jax.errors import ConfigError
from cervseg_jax.extras import install_command
from cervseg_jax.runs.bucket import local_copy
from cervseg_jax.runs.folder import choose_run_folder
from cervseg_jax.storage.cached import PIECE_BYTES
from tests.helpers import COMMAND, assert_same_run, refused, rows_of, run
from tests.runtime.test_distributed import COMPARED, end_of, start

RUN = "gs://mine/runs/a"


@pytest.fixture
def begin(bucket, tmp_path):
    """Starts a command on a machine that has nothing but the data."""

    def begin(*arguments):
        return subprocess.Popen(
            [*COMMAND, *map(str, arguments)],
            env=os.environ | bucket.environment | {"TMPDIR": str(tmp_path)},  # with the tests' compiled programs
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return begin


@pytest.fixture
def call(begin):
    """Runs a command and returns (exit code, stdout, stderr)."""

    def call(*arguments):
        ((code, stdout, stderr),) = end_of([begin(*arguments)])
        assert "Traceback" not in stderr
        return code, stdout, without_greeting(stderr)

    return call


def without_greeting(stderr):
    """What the program said; TensorStore looks for a user of the bucket and says that there is none."""
    return "\n".join(line for line in stderr.splitlines() if "google_auth_provider.cc" not in line)


@pytest.fixture(scope="module")
def alone(finished, tmp_path_factory):
    """The run of a folder."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    code, _, stderr = run("train", finished[0], "--run-dir", folder)
    assert code == 0, stderr
    return folder


def fetched(bucket, folder: Path, prefix="runs/a/") -> Path:
    """Writes what is in the bucket to a folder."""
    for name, stored in bucket.objects.items():
        path = folder / name.removeprefix(prefix)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(stored.data)
    return folder


def files_of(run: Path) -> set[str]:
    names = (path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file())
    return {name for name in names if not name.startswith("checkpoints/") and name != "run.lock"}


@pytest.mark.slow
def test_a_run_in_a_bucket_is_the_run_of_a_folder(finished, alone, bucket, call, tmp_path):
    code, stdout, stderr = call("train", finished[0], "--run-dir", RUN)
    assert (code, stderr) == (0, "")
    assert f"next: cervseg-jax eval {RUN}\n" in stdout
    copy = fetched(bucket, tmp_path / "fetched")
    assert_same_run(copy, alone)
    assert files_of(copy) == files_of(alone)
    assert {name.split("/")[3] for name in bucket.objects if "/checkpoints/" in name} == {"9", "13"}

    code, stdout, stderr = call("train", finished[0], "--run-dir", RUN)
    assert code == 0, stderr
    assert "all 3 epochs are done" in stdout
    message = call("train", finished[0], "--run-dir", RUN, "--set", "train.batch_size=2")[2]
    assert message.startswith(f"error: {RUN}: holds a run of another config:\n  train.batch_size: 4 -> 2\n")

    code, stdout, stderr = call("eval", RUN)
    assert (code, stderr) == (0, "")
    assert f"written to {RUN}/eval/test" in stdout
    summary = json.loads(bucket.objects["runs/a/eval/test/summary.json"].data)
    assert summary["num_images"] == 5
    code, stdout, stderr = call("report", RUN)
    assert stdout.startswith(f"{RUN}/report.html: ")
    images = finished[0].parent / "data" / "test" / "images"
    assert call("infer", RUN, "--images", images, "--out", tmp_path / "masks")[0] == 0
    assert len(list((tmp_path / "masks" / "masks").iterdir())) == 5

    assert not list(tmp_path.glob("cervseg-jax-bucket-*"))
    for name, stored in bucket.objects.items():
        assert b"cervseg-jax-bucket" not in stored.data, name


@pytest.mark.slow
def test_a_run_in_a_bucket_is_exported_compared_and_started_from(finished, alone, bucket, call, tmp_path):
    for path in alone.rglob("*"):
        if path.is_file() and path.name != "run.lock":
            bucket.put(f"runs/a/{path.relative_to(alone)}", path.read_bytes(), {})
    code, stdout, stderr = call("export", RUN)
    assert (code, stderr) == (0, "")
    assert stdout.startswith(f"{RUN}/export/stablehlo/")
    assert "runs/a/export/stablehlo/contract.json" in bucket.objects
    code, stdout, stderr = call("compare", RUN, alone, "--out", tmp_path / "compared")
    assert code == 0, stderr
    assert json.loads((tmp_path / "compared" / "comparison.json").read_text())["num_images"] == 5

    stored = dict(bucket.objects)
    start = ("--set", f"train.init_from={RUN}", "--set", "train.epochs=1")
    code, _, stderr = call("train", finished[0], "--run-dir", tmp_path / "more", *start)
    assert code == 0, stderr
    first, more = rows_of(alone / "metrics.csv"), rows_of(tmp_path / "more" / "metrics.csv")
    assert float(more[0]["loss"]) < float(first[0]["loss"])
    assert bucket.objects == stored
    start = ("--set", "train.init_from=gs://mine/runs/none")
    code, _, stderr = call("train", finished[0], "--run-dir", tmp_path / "none", *start)
    assert code == 4
    assert "error: gs://mine/runs/none/best: holds no trained weights" in stderr


@pytest.mark.parametrize(
    "moment",
    [b"checkpoints/9/commit_success", b"best/contract.json", b"checkpoints/9/state"],
)
@pytest.mark.slow
def test_killed_while_it_writes_to_the_bucket(finished, alone, bucket, begin, call, tmp_path, moment):
    """The machine is gone with its disk; another one goes on from what is in the bucket."""
    process = begin("train", finished[0], "--run-dir", RUN)

    def kill(method, request):
        is_second_epoch = "runs/a/checkpoints/5/commit_success.txt" in bucket.objects
        if method != "GET" and is_second_epoch and moment in request.replace(b"%2F", b"/"):
            process.kill()

    bucket.watch = kill
    process.communicate(timeout=240)
    assert process.returncode == -signal.SIGKILL
    bucket.watch = lambda method, request: None
    code, stdout, stderr = call("train", finished[0], "--run-dir", RUN)
    assert code == 0, stderr
    assert re.search("resumed from step (2, 1|4, 2) epochs finished", stdout)
    assert_same_run(fetched(bucket, tmp_path / "fetched"), alone)


@pytest.mark.slow
def test_a_signal_saves_to_the_bucket(finished, alone, bucket, begin, call, tmp_path):
    process = begin("train", finished[0], "--run-dir", RUN, "--set", "train.epochs=400")
    saved = threading.Event()
    bucket.watch = lambda method, request: b"5/commit_success.txt" in request and saved.set()
    assert saved.wait(120)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=240)
    assert process.returncode == 75, stderr
    events = [json.loads(line) for line in bucket.objects["runs/a/log.jsonl"].data.splitlines()]
    assert events[-1]["event"] == "interrupted"
    done = len(rows_of(fetched(bucket, tmp_path / "fetched") / "metrics.csv"))
    more = ("--set", f"train.epochs={done + 1}", "--allow-changes")
    code, stdout, stderr = call("train", finished[0], "--run-dir", RUN, *more)
    assert code == 0, stderr
    assert f"resumed from step {events[-1]['step']}" in stdout


@pytest.mark.slow
def test_damage_in_the_bucket_is_seen(finished, bucket, call):
    assert call("train", finished[0], "--run-dir", RUN)[0] == 0

    def damage(number):
        for name, stored in bucket.objects.items():
            if f"/checkpoints/{number}/state/" in name and "/d/" in name:
                broken = bytearray(stored.data)
                broken[len(broken) // 2] ^= 255
                bucket.objects[name] = stored._replace(data=bytes(broken))

    damage(13)
    more = ("--set", "train.epochs=4", "--allow-changes")
    code, stdout, stderr = call("train", finished[0], "--run-dir", RUN, *more)
    assert code == 0, stderr
    assert f"warning: {RUN}/checkpoints: state 13: " in stderr
    assert "; going back to state 9" in stderr
    assert "resumed from step 4, 2 epochs finished" in stdout
    for number in (9, 13, 17):
        damage(number)
    code, _, stderr = call("train", finished[0], "--run-dir", RUN, *more)
    assert code == 4
    assert f"error: {RUN}/checkpoints: no usable state:" in stderr


@pytest.mark.slow
def test_two_processes_share_nothing_but_the_bucket(finished, alone, bucket, tmp_path):
    given = ("train", finished[0], "--run-dir", RUN, "--set", "train.epochs=1")
    results = end_of(start(*given, more=bucket.environment))
    assert [code for code, *_ in results] == [0, 0], results[0][2] + results[1][2]
    (row,) = rows_of(fetched(bucket, tmp_path / "fetched") / "metrics.csv")
    for name in COMPARED:
        assert float(row[name]) == pytest.approx(float(rows_of(alone / "metrics.csv")[0][name]), rel=2e-2), name
    more = ("--set", "train.epochs=2", "--allow-changes")
    results = end_of(start(*given, *more, more=bucket.environment))
    assert [code for code, *_ in results] == [0, 0], results[0][2] + results[1][2]
    assert "resumed from step 2, 1 epochs finished" in results[0][1]


def test_buckets_that_cannot_be_used(finished, bucket, call):
    code, _, stderr = call("train", finished[0], "--run-dir", "gs://other/runs/a")
    assert code == 2
    assert stderr.startswith("error: gs://other: no such bucket")
    assert "a run needs a folder in it" in refused(2, "train", finished[0], "--run-dir", "gs://mine")
    code, _, stderr = call("eval", "gs://mine/runs/none")
    assert code == 2
    assert stderr == "error: gs://mine/runs/none: no such run folder"
    bucket.is_writable = False
    code, stdout, stderr = call("train", finished[0], "--run-dir", RUN)
    assert code == 2
    assert re.match(f"error: {RUN}/[a-z.]+: cannot be written: no permission", stderr)
    assert "epoch 1" not in stdout


def test_a_copy_loses_nothing_when_requests_fail(store):
    """Read back from the server's own memory."""
    rng = np.random.default_rng(0)
    names = [f"best/w{index}.npz" for index in range(12)] + ["best/contract.json", "log.jsonl", "previews/1/a.png"]
    for name in [*names, "checkpoints/5/x", "run.lock"]:
        store.put(f"runs/a/{name}", rng.bytes(500), {})
    store.put("runs/a/best/large.npz", rng.bytes(PIECE_BYTES + 1), {})
    before = dict(store.objects)
    number, written = itertools.count(), []
    kinds = itertools.cycle(("503", "cut", "reset", "429"))
    store.fault = lambda method, target: next(kinds) if next(number) % 4 == 0 else ""
    with local_copy(Path(RUN)) as run:
        copied = {f"runs/a/{path.relative_to(run.folder)}": path for path in run.folder.rglob("*") if path.is_file()}
        assert copied.keys() == before.keys() - {"runs/a/checkpoints/5/x", "runs/a/run.lock"}
        assert all(path.read_bytes() == before[name].data for name, path in copied.items())
        store.watch = lambda method, request: written.append(request) if method != "GET" else None
        run.publish()
        assert written == []  # nothing has changed
        for index in range(12):
            (run.folder / f"best/w{index}.npz").write_bytes(b"new %d" % index)
        (run.folder / "best" / "contract.json").write_bytes(b"refers to the new ones")
        (run.folder / "previews" / "1" / "a.png").unlink()
    after = {name: stored.data for name, stored in store.objects.items()}
    changed = {f"runs/a/best/w{index}.npz": b"new %d" % index for index in range(12)}
    changed["runs/a/best/contract.json"] = b"refers to the new ones"
    expected = {name: stored.data for name, stored in before.items()} | changed
    assert after == {name: data for name, data in expected.items() if name != "runs/a/previews/1/a.png"}
    uploads = [b"contract.json" in request for request in written if b"a.png" not in request]
    assert uploads.index(True) >= 12 and all(uploads[uploads.index(True) :])


def test_where_no_training_can_write(store, tmp_path):
    for address in ("https://example.org/runs/a", "s3://mine/runs/a"):
        with pytest.raises(ConfigError, match=f"--run-dir: {address}: a training writes its run to gs://"):
            choose_run_folder(tmp_path / "a.yaml", Path(address), fresh=False)
    store.put("runs/a/config.yaml", b"", {})
    assert str(choose_run_folder(tmp_path / "a.yaml", Path(RUN), fresh=True)) == f"{RUN}-2"
    with pytest.raises(ConfigError, match="is a file; a run is a folder"), local_copy(Path(RUN) / "config.yaml"):
        pass


def test_without_the_client_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ConfigError, match=re.escape(install_command("bucket"))), local_copy(Path(RUN)):
        pass


def test_paths_of_a_run_in_a_bucket_are_shown_as_addresses(monkeypatch, tmp_path):
    """The address is a value of its own: no path on this machine holds it."""
    monkeypatch.setattr("cervseg_jax.runs.bucket._Copy.fetch", lambda copy: None)
    monkeypatch.setattr("cervseg_jax.runs.bucket._Copy.publish", lambda copy: None)
    monkeypatch.chdir(tmp_path)
    with local_copy(Path(RUN)) as run:
        assert str(run.address) == RUN
        assert "mine" not in str(run.folder) and run.folder.name == "a"
        member = run.subrun("seed_1")
        assert (member.folder, str(member.address)) == (run.folder / "seed_1", f"{RUN}/seed_1")
        assert run.display_path(run.folder) == RUN
        assert member.display_path(member.folder / "best") == f"{RUN}/seed_1/best"
        assert run.display_path(tmp_path / "out") == "out"


def test_a_folder_is_its_own_copy(tmp_path):
    with local_copy(tmp_path) as run:
        assert run.folder == tmp_path
        run.publish()
    assert os.listdir(tmp_path) == []
