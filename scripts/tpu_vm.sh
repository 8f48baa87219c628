#!/usr/bin/env bash
# Trains on a Cloud TPU VM or a slice of several hosts: create, set up, run, survive preemption, fetch, delete.
#
#   scripts/tpu_vm.sh COMMAND [arguments]
#     create            make the TPU (SPOT=1: cheaper, can be taken away at any time)
#     setup             copy this source tree to all workers and install it
#     data              copy BUCKET/data to all workers
#     run CONFIG ...    train on all workers: cervseg-jax train CONFIG ...; its exit code is 75 after preemption
#     watch CONFIG ...  create, setup, data and run; again after exit 75 and when the TPU was taken away
#     fetch             copy the runs to ./runs
#     delete            delete the TPU
#
# Environment: NAME, ZONE, TYPE (v5litepod-8), VERSION (v2-alpha-tpuv5-lite), SPOT (0),
# BUCKET (gs://..., with data in BUCKET/data; runs are written to BUCKET/runs),
# RUNS (without a bucket: folder on the workers for runs; on a slice of several hosts on a disk that they share),
# DRY_RUN=1 prints every command instead of running it, PAUSE (30) seconds between two tries.
set -euo pipefail

name=${NAME:-cervseg}
zone=${ZONE:-us-west4-a}
type=${TYPE:-v5litepod-8}
version=${VERSION:-v2-alpha-tpuv5-lite}
bucket=${BUCKET:-}
runs=${RUNS:-\$HOME/runs}
pause=${PAUSE:-30}
source_tree=$(cd "$(dirname "$0")/.." && pwd)
PREEMPTED_EXIT=75

say() { printf '== %s\n' "$*" >&2; }

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

act() { # runs a command, or prints it so that a shell would read it back
  if [[ ${DRY_RUN:-0} == 1 ]]; then
    printf '%q ' "$@"
    printf '\n'
  else
    "$@"
  fi
}

tpu() { # VERB ARGUMENTS...: one of gcloud's commands on this TPU
  local verb=$1
  shift
  act gcloud compute tpus tpu-vm "$verb" "$name" --zone="$zone" "$@"
}

everywhere() { tpu ssh --worker=all --command="$1"; }

require_bucket() { [[ $bucket == gs://* ]] || fail "BUCKET must be set to gs://..., got '$bucket'"; }

create() {
  local options=(--accelerator-type="$type" --version="$version")
  if [[ ${SPOT:-0} == 1 ]]; then options+=(--spot); fi
  tpu create "${options[@]}"
}

setup() {
  local archive
  archive=$(mktemp -t cervseg.XXXXXX.tar.gz)
  act git -C "$source_tree" archive --format=tar.gz --output="$archive" HEAD
  act gcloud compute tpus tpu-vm scp "$archive" "$name:cervseg.tar.gz" --zone="$zone" --worker=all
  rm -f "$archive"
  everywhere "mkdir -p cervseg && tar -xzf cervseg.tar.gz -C cervseg && python3 -m venv cervseg/.venv && cervseg/.venv/bin/pip install --quiet -e 'cervseg[tpu,bucket]' && cervseg/.venv/bin/cervseg-jax doctor"
}

data() {
  require_bucket
  everywhere "mkdir -p cervseg/data && gcloud storage rsync --recursive $bucket/data cervseg/data"
}

run() {
  [[ $# -ge 1 ]] || fail "run needs a config, such as configs/clustered.yaml"
  local config=$1 stem options code
  shift
  stem=$(basename "$config" .yaml)
  options=$([[ $# == 0 ]] || printf ' %q' "$@")
  local home=${bucket:+$bucket/runs} # a TPU that is taken away takes its disk along
  local train="cd cervseg; .venv/bin/cervseg-jax train $config --distributed --set runtime.require=tpu --run-dir ${home:-$runs}/$stem$options; code=\$?"
  # gcloud does not pass exit codes on; the first worker leaves its own in a file.
  local note="case \$(hostname) in *-w-0) echo \$code > $runs/$stem.exit ;; esac"
  everywhere "mkdir -p $runs; rm -f $runs/$stem.exit; $train; $note; exit \$code" || true
  if [[ ${DRY_RUN:-0} == 1 ]]; then return; fi
  code=$(tpu ssh --worker=0 --command="cat $runs/$stem.exit" | tail -n 1) || true
  [[ $code =~ ^[0-9]+$ ]] || code=1
  return "$code"
}

state() { gcloud compute tpus tpu-vm describe "$name" --zone="$zone" --format='value(state)' 2> /dev/null || echo ABSENT; }

watch() {
  if [[ ${DRY_RUN:-0} == 1 ]]; then
    create
    setup
    if [[ -n $bucket ]]; then data; fi
    run "$@"
    return
  fi
  local code now
  while true; do
    now=$(state)
    if [[ $now != READY ]]; then
      say "the TPU is $now"
      if [[ $now != ABSENT ]]; then delete || true; fi
      if ! { create && setup && { [[ -z $bucket ]] || data; }; }; then
        say "it could not be made ready; again in $pause s"
        sleep "$pause"
        continue
      fi
    fi
    code=0
    run "$@" || code=$?
    if [[ $code == 0 ]]; then
      say "finished"
      return
    fi
    now=$(state)
    if [[ $code != "$PREEMPTED_EXIT" && $now == READY ]]; then
      say "training ended with $code and the TPU is there: not a preemption"
      return "$code"
    fi
    say "training ended with $code, the TPU is $now; again in $pause s"
    sleep "$pause"
  done
}

fetch() {
  if [[ -n $bucket ]]; then
    act mkdir -p runs
    act gcloud storage rsync --recursive "$bucket/runs" runs
  else
    act gcloud compute tpus tpu-vm scp --recurse "$name:${runs#\$HOME/}" . --zone="$zone" --worker=0
  fi
}

delete() { tpu delete --quiet; }

command=${1:-}
case $command in
  create | setup | data | fetch | delete) "$command" ;;
  run | watch)
    shift
    "$command" "$@"
    ;;
  *)
    sed -n '2,/^set -e/{/^set -e/d;s/^# \{0,1\}//;p}' "$0" >&2
    exit 2
    ;;
esac
