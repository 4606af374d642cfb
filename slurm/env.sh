# What every job of this directory needs to know about the site. Sourced by slurm/*.sub.
# Each value may be set before `sbatch`, which hands the environment on; or edit it here. No secrets:
# WANDB_API_KEY and the like are exported, and reach the ranks with the environment.
# shellcheck shell=bash disable=SC2034  # what the scripts use

# The clone, where every node sees it. Slurm runs a copy of the script, so it cannot tell by itself.
export NEMO_GDPO_HOME="${NEMO_GDPO_HOME:-${SLURM_SUBMIT_DIR:-$PWD}}"
# Its package, whatever directory the job was submitted in.
export PYTHONPATH="$NEMO_GDPO_HOME${PYTHONPATH:+:$PYTHONPATH}"

# Modules to load, separated by spaces; empty loads none.
NEMO_GDPO_MODULES="${NEMO_GDPO_MODULES:-}"

# A container image: of pyxis (`srun --container-image`; a .sqsh file, or it is imported for every
# step), or of Apptainer (`apptainer exec --nv`, a .sif file). Both empty run on the nodes themselves.
# What to mount there, as from:to,from:to; the clone and the job's directory are mounted in any case.
NEMO_GDPO_IMAGE="${NEMO_GDPO_IMAGE:-}"
NEMO_GDPO_SIF="${NEMO_GDPO_SIF:-}"
NEMO_GDPO_MOUNTS="${NEMO_GDPO_MOUNTS:-}"

# The interpreter of the training environment (`make python-training-gpu`, in NVIDIA's image
# `make python-training-ngc`), and that of the generation environment (`make python-generation-gpu`),
# as the nodes or the container see them.
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

# Further flags of the srun that starts the ranks, such as `--mpi=none` or `--gpus-per-task=1`.
NEMO_GDPO_SRUN_FLAGS="${NEMO_GDPO_SRUN_FLAGS:-}"

# How often in a row a job starts again although the time before brought nothing new: no newer
# checkpoint, no further row. Restarts that get further are not limited.
NEMO_GDPO_MAX_RESTARTS="${NEMO_GDPO_MAX_RESTARTS:-5}"

# Whether a training job that is done submits export, sampling and evaluation (yes or no), and what is
# added to those sbatch lines: to all, to the export's (no GPU: another partition may be wanted), and
# to the two samplings'.
NEMO_GDPO_CHAIN="${NEMO_GDPO_CHAIN:-yes}"
NEMO_GDPO_CHAIN_FLAGS="${NEMO_GDPO_CHAIN_FLAGS:-}"
NEMO_GDPO_EXPORT_FLAGS="${NEMO_GDPO_EXPORT_FLAGS:-}"
NEMO_GDPO_SAMPLE_FLAGS="${NEMO_GDPO_SAMPLE_FLAGS:-}"
# Prompts to sample for, JSONL; empty takes those of the first validation pairs. And overrides of
# `nemo-gdpo generate` and `evaluate` for those jobs, separated by spaces.
NEMO_GDPO_PROMPTS="${NEMO_GDPO_PROMPTS:-}"
NEMO_GDPO_SAMPLING="${NEMO_GDPO_SAMPLING:-generation=temperatures}"
NEMO_GDPO_EVALUATION="${NEMO_GDPO_EVALUATION:-}"

# No node asks the internet for anything, and threads do not multiply.
export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}"
export TOKENIZERS_PARALLELISM="${TOKENIZERS_PARALLELISM:-false}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
export RAY_USAGE_STATS_ENABLED=0

if [[ -n "$NEMO_GDPO_MODULES" ]]; then
  # shellcheck disable=SC2086  # one word a module
  module load $NEMO_GDPO_MODULES
fi

# shellcheck source=slurm/job.sh
source "$NEMO_GDPO_HOME/slurm/job.sh"
