# What the jobs of this directory need to know about the site. Sourced by slurm/*.sub.
# Export a value before `sbatch`, which passes the environment on to the job, or edit it here. Keep
# secrets out of this file: export WANDB_API_KEY and the like, and the ranks inherit them.
# shellcheck shell=bash disable=SC2034  # used by the scripts that source this

# The clone, on a disk that every node sees. A job cannot find it from its script: Slurm runs a copy.
export NEMO_GDPO_HOME="${NEMO_GDPO_HOME:-${SLURM_SUBMIT_DIR:-$PWD}}"
# So that its package is found from whatever directory the job was submitted in.
export PYTHONPATH="$NEMO_GDPO_HOME${PYTHONPATH:+:$PYTHONPATH}"

# Modules to load, separated by spaces; empty loads none.
NEMO_GDPO_MODULES="${NEMO_GDPO_MODULES:-}"

# A container image for pyxis (`srun --container-image`; anything but a .sqsh file is imported anew for
# every step), or one for Apptainer (`apptainer exec --nv`; a .sif file). With neither, the job runs on
# the nodes themselves. NEMO_GDPO_MOUNTS lists what to mount besides the clone and the job's directory,
# as from:to,from:to.
NEMO_GDPO_IMAGE="${NEMO_GDPO_IMAGE:-}"
NEMO_GDPO_SIF="${NEMO_GDPO_SIF:-}"
NEMO_GDPO_MOUNTS="${NEMO_GDPO_MOUNTS:-}"

# The interpreters of the training environment (`make python-training-gpu`, or in NVIDIA's image
# `make python-training-ngc`) and of the generation environment (`make python-generation-gpu`), by the
# paths that the nodes or the container know them by.
own_python() {
  local name
  for name in "$@"; do
    [[ ! -x "$NEMO_GDPO_HOME/.venv/$name/bin/python" ]] || break
  done
  echo "$NEMO_GDPO_HOME/.venv/$name/bin/python"
}
NEMO_GDPO_TRAINING_PYTHON="${NEMO_GDPO_TRAINING_PYTHON:-$(own_python training-gpu training-ngc training)}"
NEMO_GDPO_GENERATION_PYTHON="${NEMO_GDPO_GENERATION_PYTHON:-$(own_python generation-gpu generation)}"
export NEMO_GDPO_TRAINING_PYTHON NEMO_GDPO_GENERATION_PYTHON

# The network interface that the nodes talk over, such as ib0 or eth0; empty lets each library choose.
NEMO_GDPO_INTERFACE="${NEMO_GDPO_INTERFACE:-}"
if [[ -n "$NEMO_GDPO_INTERFACE" ]]; then
  export GLOO_SOCKET_IFNAME="$NEMO_GDPO_INTERFACE"
  export NCCL_SOCKET_IFNAME="$NEMO_GDPO_INTERFACE"
fi

# More flags for the srun that starts the ranks, such as `--mpi=none` or `--gpus-per-task=1`.
NEMO_GDPO_SRUN_FLAGS="${NEMO_GDPO_SRUN_FLAGS:-}"

# How many restarts in a row may bring nothing new (no newer checkpoint, no more rows) before the job
# ends. Restarts that make progress are not limited.
NEMO_GDPO_MAX_RESTARTS="${NEMO_GDPO_MAX_RESTARTS:-5}"

# Whether a training job submits export, sampling and evaluation once it is done (yes or no); and more
# flags for sbatch: for all of those jobs, for the export (it uses no GPU and may belong in another
# partition), and for the two sampling jobs.
NEMO_GDPO_CHAIN="${NEMO_GDPO_CHAIN:-yes}"
NEMO_GDPO_CHAIN_FLAGS="${NEMO_GDPO_CHAIN_FLAGS:-}"
NEMO_GDPO_EXPORT_FLAGS="${NEMO_GDPO_EXPORT_FLAGS:-}"
NEMO_GDPO_SAMPLE_FLAGS="${NEMO_GDPO_SAMPLE_FLAGS:-}"
# The prompts to sample for, as JSONL; when empty, those of the first validation pairs. Then overrides
# of `nemo-gdpo generate` and `evaluate` for those jobs, separated by spaces.
NEMO_GDPO_PROMPTS="${NEMO_GDPO_PROMPTS:-}"
NEMO_GDPO_SAMPLING="${NEMO_GDPO_SAMPLING:-generation=temperatures}"
NEMO_GDPO_EVALUATION="${NEMO_GDPO_EVALUATION:-}"

# Nodes ask the internet for nothing, and every rank keeps to its own thread.
export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}"
export TOKENIZERS_PARALLELISM="${TOKENIZERS_PARALLELISM:-false}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
export RAY_USAGE_STATS_ENABLED=0

if [[ -n "$NEMO_GDPO_MODULES" ]]; then
  # shellcheck disable=SC2086  # one word per module
  module load $NEMO_GDPO_MODULES
fi

# shellcheck source=slurm/job.sh
source "$NEMO_GDPO_HOME/slurm/job.sh"
