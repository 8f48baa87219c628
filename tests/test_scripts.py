"""The scripts for Cloud TPUs, with a gcloud that only remembers what it was asked."""

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
