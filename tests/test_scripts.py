"""The scripts for Cloud TPUs, with a gcloud that only remembers what it was asked; and checks of files and readers."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT

SCRIPT = ROOT / "scripts" / "tpu_vm.sh"
# `describe` answers with the next line of `states`, `cat ....exit` with the next line of `codes`.
GCLOUD = """#!/usr/bin/env bash
cd "$(dirname "$0")"
printf '%s\\n' "$*" >> calls
next() { head -n 1 "$1"; [ "$(wc -l < "$1")" -le 1 ] || sed -i 1d "$1"; }
case "$*" in
  *" describe "*) state=$(next states); [ "$state" = ABSENT ] && exit 1; echo "$state" ;;
  *"cat "*.exit*) next codes ;;
esac
"""


@pytest.fixture
def cloud(tmp_path):
    (tmp_path / "gcloud").write_text(GCLOUD)
    (tmp_path / "gcloud").chmod(0o755)

    def ask(*arguments, states=("READY",), codes=("0",), **variables):
        (tmp_path / "states").write_text("\n".join(states) + "\n")
        (tmp_path / "codes").write_text("\n".join(codes) + "\n")
        (tmp_path / "calls").write_text("")
        environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PAUSE": "0", **variables}
        done = subprocess.run([SCRIPT, *arguments], env=environment, capture_output=True, text=True, timeout=60)
        return done, (tmp_path / "calls").read_text().splitlines()

    return ask


def verbs(calls):
    """create, delete, or train, in order."""
    names = {" create ": "create", " delete ": "delete", "cervseg-jax train": "train"}
    return [verb for call in calls for part, verb in names.items() if part in call]


def test_a_dry_run_prints_every_command_and_runs_none(cloud):
    done, calls = cloud(
        "watch", "configs/clustered.yaml", "--set", "train.loss_args={smooth: 1}",
        DRY_RUN="1", BUCKET="gs://mine", SPOT="1", TYPE="v5litepod-16", NAME="cells",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert calls == []
    lines = done.stdout.splitlines()
    assert lines[0].startswith("gcloud compute tpus tpu-vm create cells --zone=")
    assert "--accelerator-type=v5litepod-16" in lines[0]
    assert "--spot" in lines[0]
    assert any("gs://mine/data" in line for line in lines)
    # A shell reads what was printed as the same words.
    (train,) = [line for line in lines if "cervseg-jax" in line and "clustered.yaml" in line]
    words = subprocess.run(["bash", "-c", f"printf '%s\\n' {train}"], capture_output=True, text=True).stdout
    assert "train configs/clustered.yaml --distributed --set runtime.require=tpu" in words
    assert r"--set train.loss_args=\{smooth:\ 1\}" in words


def test_training_goes_on_after_preemption(cloud):
    """Stopped with 75 on a TPU that stays; then taken away; then finished."""
    states = ("ABSENT", "READY", "READY", "PREEMPTED", "PREEMPTED", "READY")
    done, calls = cloud("watch", "configs/clustered.yaml", states=states, codes=("75", "137", "0"))
    assert done.returncode == 0, done.stderr
    assert verbs(calls) == ["create", "train", "train", "delete", "create", "train"]
    assert "finished" in done.stderr


def test_other_failures_end_it_with_their_code(cloud):
    done, calls = cloud("watch", "configs/clustered.yaml", codes=("3",))
    assert done.returncode == 3
    assert verbs(calls) == ["train"]
    assert "not a preemption" in done.stderr


def test_with_a_bucket_the_runs_are_in_it(cloud):
    _, calls = cloud("run", "configs/clustered.yaml", BUCKET="gs://mine")
    (train,) = [call for call in calls if "cervseg-jax train" in call]
    assert "--run-dir gs://mine/runs/clustered;" in train
    assert "--worker=all" in train
    _, calls = cloud("run", "configs/clustered.yaml")
    (train,) = [call for call in calls if "cervseg-jax train" in call]
    assert "--run-dir $HOME/runs/clustered;" in train


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((), "scripts/tpu_vm.sh COMMAND"), (("run",), "run needs a config"), (("data",), "BUCKET must be set")],
)
def test_mistakes_are_named(cloud, arguments, message):
    done, calls = cloud(*arguments)
    assert (done.returncode, calls) == (2, [])
    assert message in done.stderr


def test_shellcheck_finds_nothing():
    program = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([program, SCRIPT, ROOT / ".ci" / "run"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def load_script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SQUARE = [[2.0, 2.0], [8.0, 2.0], [8.0, 6.0], [2.0, 6.0], [2.0, 2.0]]


def feature(identifier="6f1d7c1e-6d0f-5d0e-9a43-2f0b8a5a1c77", ring=SQUARE, kind="detection"):
    properties = {
        "objectType": kind,
        "classification": {"name": "nucleus", "color": [1, 2, 3]},
        "measurements": {"a": 1},
    }
    geometry = {"type": "Polygon", "coordinates": [ring]}
    return {"type": "Feature", "id": identifier, "geometry": geometry, "properties": properties}


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ([feature(), feature()], "not unique"),
        ([feature(identifier="1")], "badly formed"),
        ([feature(ring=SQUARE[:-1])], "not closed"),
        ([feature(kind="annotation")], "not a detection"),
    ],
)
def test_features_that_qupath_would_not_read_as_detections_are_named(features, message):
    clients = load_script("check_clients")
    clients.check_features({"type": "FeatureCollection", "features": [feature()]})
    with pytest.raises(ValueError, match=message):
        clients.check_features({"type": "FeatureCollection", "features": features})


def test_clients_see_the_counts_and_areas_of_the_table(tmp_path):
    clients = load_script("check_clients")
    (tmp_path / "images.csv").write_text("image,file\na,x/a.png\nb,x/b.png\n")
    (tmp_path / "nuclei.csv").write_text("image,label,area_px\na,1,24\n")
    (tmp_path / "geojson").mkdir()
    for name, features in (("a", [feature()]), ("b", [])):
        document = {"type": "FeatureCollection", "features": features}
        (tmp_path / "geojson" / f"{name}.geojson").write_text(json.dumps(document))
    files, expected = clients.files_by_name(tmp_path), clients.measured_areas(tmp_path)
    assert expected == {"a": [24.0], "b": []}

    def read():
        return clients.areas_of_geojson(tmp_path, files, with_shapely=False)

    assert clients.outcome(read, expected) == "1 nuclei, all areas equal"
    assert clients.outcome(read, {"a": [23.0], "b": []}) == "WRONG: a: nucleus 1 has 24 px instead of 23"
    assert clients.outcome(read, {"a": [], "b": []}) == "WRONG: a: 1 nuclei instead of 0"
    absent = tmp_path / "ij.jar"
    message = clients.outcome(lambda: clients.areas_of_rois(tmp_path, files, absent), expected)
    assert message == f"not installed: {absent}, or java"


def test_damaged_files_end_as_a_result_or_a_message(tmp_path):
    """A small part of the fuzz campaign."""
    pytest.importorskip("imagecodecs", reason="the extra `formats` is not installed")
    counts = ("--images", "40", "--annotations", "10", "--archives", "4", "--slides", "4")
    command = [sys.executable, ROOT / "scripts" / "fuzz_campaign.py", tmp_path / "out", *counts]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WRONG" not in done.stdout
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")]
    assert sum(int(row[-1].strip(" |")) for row in rows) == 40 + 1 + 4 + 4


def test_a_part_that_fails_or_is_cut_off_leaves_its_rows():
    check = load_script("gpu_check")

    def measured():
        yield {"form": "xla", "ms": 12.3456}
        yield {"form": "packed", "ms": 3.0, "series": [1, 2]}
        raise ValueError("no such device")

    rows = []
    assert check.collect(measured(), rows, float("inf")) == "failed: ValueError: no such device"
    assert check.table(rows).splitlines() == ["| form | ms |", "| --- | --- |", "| xla | 12.35 |", "| packed | 3 |"]
    assert check.collect(measured(), rows, 0.0) == "the time is over"
    assert len(rows) == 2


def test_missing_packages_are_named_with_the_way_to_carry_them(tmp_path):
    check = load_script("gpu_check")
    project = tmp_path / "pyproject.toml"
    project.write_text('[project]\ndependencies = ["numpy>=2", "no-such_package.x>=1,<2"]\n')
    with pytest.raises(SystemExit, match=r"pip install --target packages 'no-such_package.x>=1,<2'; then"):
        check.require_packages(project)
    check.require_packages(ROOT / "pyproject.toml")


def test_kernels_of_the_device_are_summed():
    check = load_script("gpu_check")
    events = [
        {"ph": "M", "name": "process_name", "pid": 1, "args": {"name": "/device:GPU:0"}},
        {"ph": "M", "name": "process_name", "pid": 2, "args": {"name": "/host:CPU"}},
        {"name": "convolution", "pid": 1, "dur": 30},
        {"name": "convolution", "pid": 1, "dur": 12},
        {"name": "python", "pid": 2, "dur": 500},
    ]
    assert check.kernel_microseconds(events) == {"convolution": 42}
    assert check.kernel_microseconds({"traceEvents": events[1:2] + events[4:]}) == {"python": 500}
