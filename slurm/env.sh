# What every job of this directory needs to know about the site. Sourced by slurm/*.sub.
# Each value may be set before `sbatch`, which hands the environment on; or edit it here. No secrets.
# shellcheck shell=bash disable=SC2034  # what the scripts use

# The clone, where every node sees it. Slurm runs a copy of the script, so it cannot tell by itself.
export NEMO_GDPO_HOME="${NEMO_GDPO_HOME:-${SLURM_SUBMIT_DIR:-$PWD}}"

# Modules to load, separated by spaces; empty loads none.
NEMO_GDPO_MODULES="${NEMO_GDPO_MODULES:-}"

# A container image for pyxis (`srun --container-image`) and what to mount there, as from:to,from:to;
# an empty image runs on the nodes themselves. The clone is mounted where it is in any case.
NEMO_GDPO_IMAGE="${NEMO_GDPO_IMAGE:-}"
NEMO_GDPO_MOUNTS="${NEMO_GDPO_MOUNTS:-}"

# The interpreter of the generation environment (`make python-generation`, or on GPUs
# `make python-generation-gpu`), as the nodes or the container see it.
if [[ -z "${NEMO_GDPO_GENERATION_PYTHON:-}" ]]; then
  NEMO_GDPO_GENERATION_PYTHON="$NEMO_GDPO_HOME/.venv/generation-gpu/bin/python"
  if [[ ! -x "$NEMO_GDPO_GENERATION_PYTHON" ]]; then
    NEMO_GDPO_GENERATION_PYTHON="$NEMO_GDPO_HOME/.venv/generation/bin/python"
  fi
fi
export NEMO_GDPO_GENERATION_PYTHON

# The network interface that the nodes talk over, such as ib0 or eth0; empty lets each library choose.
NEMO_GDPO_INTERFACE="${NEMO_GDPO_INTERFACE:-}"
if [[ -n "$NEMO_GDPO_INTERFACE" ]]; then
  export GLOO_SOCKET_IFNAME="$NEMO_GDPO_INTERFACE"
  export NCCL_SOCKET_IFNAME="$NEMO_GDPO_INTERFACE"
fi

# How often a job that was stopped before its time ran out puts itself into the queue again.
NEMO_GDPO_MAX_RESTARTS="${NEMO_GDPO_MAX_RESTARTS:-20}"

# No node asks the internet for anything, and threads do not multiply.
export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}"
export TOKENIZERS_PARALLELISM="${TOKENIZERS_PARALLELISM:-false}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
export RAY_USAGE_STATS_ENABLED=0

if [[ -n "$NEMO_GDPO_MODULES" ]]; then
  # shellcheck disable=SC2086  # one word a module
  module load $NEMO_GDPO_MODULES
fi

# Flags of srun for the container, with further mounts as arguments. Stock Slurm does not know them,
# not even in #SBATCH lines, so they are given only where there is an image.
CONTAINER=()
use_container() {
  [[ -n "$NEMO_GDPO_IMAGE" ]] || return 0
  local mounts="$NEMO_GDPO_HOME:$NEMO_GDPO_HOME" mount
  [[ -z "$NEMO_GDPO_MOUNTS" ]] || mounts+=",$NEMO_GDPO_MOUNTS"
  for mount in "$@"; do mounts+=",$mount:$mount"; done
  CONTAINER=(--container-image="$NEMO_GDPO_IMAGE" --container-mounts="$mounts" --container-workdir="$PWD")
}

# One line on stderr, with the time: a requeued job appends to the log of the run before it.
say() {
  printf '%(%F %T)T job %s: %s\n' -1 "${SLURM_JOB_ID:-none}" "$*" >&2
}

# Put this job into the queue again, unless it has been there too often.
requeue() {
  local restarts="${SLURM_RESTART_COUNT:-0}"
  if (( restarts >= NEMO_GDPO_MAX_RESTARTS )); then
    say "stopped after $restarts restarts (NEMO_GDPO_MAX_RESTARTS); submit it again to resume"
    return 0
  fi
  say "goes back into the queue (restart $((restarts + 1)) of at most $NEMO_GDPO_MAX_RESTARTS)"
  scontrol requeue "$SLURM_JOB_ID"
}
