# What a job of this directory does whatever its work is: it logs, runs steps, in a container where
# there is one, answers signals, and goes back into the queue. Sourced by slurm/env.sh.
# shellcheck shell=bash

# One line on stderr, with the time: a requeued job appends to the log of the run before it.
say() {
  printf '%(%F %T)T job %s: %s\n' -1 "${SLURM_JOB_ID:-none}" "$*" >&2
}

# --- steps -------------------------------------------------------------------------------------

# For the container: flags of srun (pyxis), or what stands before a command (Apptainer). Stock Slurm does
# not know pyxis' flags, not even in #SBATCH lines, so they are given only where there is an image.
CONTAINER=()
INSIDE=()
use_container() {
  [[ -n "$NEMO_GDPO_IMAGE$NEMO_GDPO_SIF" ]] || return 0
  if [[ -n "$NEMO_GDPO_IMAGE" && -n "$NEMO_GDPO_SIF" ]]; then
    say "NEMO_GDPO_IMAGE and NEMO_GDPO_SIF are both set; unset one"
    exit 2
  fi
  local mounts="$NEMO_GDPO_HOME:$NEMO_GDPO_HOME"
  [[ "$PWD" == "$NEMO_GDPO_HOME" ]] || mounts+=",$PWD:$PWD"
  [[ -z "$NEMO_GDPO_MOUNTS" ]] || mounts+=",$NEMO_GDPO_MOUNTS"
  if [[ -n "$NEMO_GDPO_IMAGE" ]]; then
    CONTAINER=(--container-image="$NEMO_GDPO_IMAGE" --container-mounts="$mounts" --container-workdir="$PWD")
  else
    INSIDE=(apptainer exec --nv --bind "$mounts" --pwd "$PWD" "$NEMO_GDPO_SIF")
  fi
}

# srun takes one CPU a task unless it is told: it does not read the job's --cpus-per-task.
CPUS=()
[[ -z "${SLURM_CPUS_PER_TASK:-}" ]] || CPUS=(--cpus-per-task="$SLURM_CPUS_PER_TASK")

# A command on the node that the script runs on, the first one. To be started in the background, where it
# takes the place of its shell, so that signals reach srun.
on_first_node() {
  exec srun --overlap --nodes=1 --ntasks=1 --ntasks-per-node=1 --nodelist="$SLURMD_NODENAME" "${CPUS[@]}" \
    "${CONTAINER[@]}" "${INSIDE[@]}" "$@"
}

# The address of this node: on NEMO_GDPO_INTERFACE, or the first that it has.
own_address() {
  if [[ -n "$NEMO_GDPO_INTERFACE" ]]; then
    ip -4 -o addr show dev "$NEMO_GDPO_INTERFACE" | awk '{sub("/.*", "", $4); print $4; exit}'
  else
    hostname -I | awk '{print $1}'
  fi
}

# --- signals -----------------------------------------------------------------------------------

# USR1 comes to this script alone, five minutes before the job's time is up (#SBATCH --signal=B:USR1@300),
# and is handed on to the step that is followed. TERM comes from Slurm to every task, too: the job is
# cancelled, or its nodes are wanted (preemption) and Slurm puts it into the queue again by itself. It
# is not handed on: srun takes TERM as the order to kill its tasks.
# Where preempted jobs have a time of grace, TERM comes to the tasks only: to this script it looks as if
# they had stopped by themselves, and it puts the job into the queue.
stopping=
cancelled=
followed=
expect_signals() {
  trap 'stopping=1; say "USR1: time is almost up"; [[ -z "$followed" ]] || kill -USR1 "$followed" 2>/dev/null' USR1
  trap 'cancelled=1; say "TERM: cancelled or preempted; Slurm decides what becomes of the job"' TERM
}

# Wait for a process in the background; returns its status. `wait` alone returns at every signal.
follow() {
  local status
  followed=$1
  [[ -z "$stopping" ]] || kill -USR1 "$followed" 2>/dev/null
  while kill -0 "$followed" 2>/dev/null; do wait "$followed"; done
  wait "$followed"
  status=$?
  followed=
  return "$status"
}

# --- the queue ---------------------------------------------------------------------------------

# "COUNT PROGRESS...": restarts in a row that brought nothing new, and how far the job had come. In the
# job's directory, where its log is, too: the next start may be on other nodes.
restarts_file=".nemo-gdpo-restarts-${SLURM_JOB_ID:-none}"

# Whether the numbers before `than` are further on than those after it; the first one that differs
# decides.
further() {
  local -a now=() before=()
  while [[ "$1" != than ]]; do now+=("$1"); shift; done
  shift
  before=("$@")
  local place
  for place in "${!now[@]}"; do
    (( now[place] == ${before[place]:-0} )) || { (( now[place] > ${before[place]:-0} )); return; }
  done
  return 1
}

# How often in a row the job has started without getting further, this start included. Arguments: how
# far it has come, as numbers that rise.
restarts_in_vain() {
  local -a noted=()
  [[ ! -f "$restarts_file" ]] || read -ra noted <"$restarts_file"
  if (( ${#noted[@]} == 0 )) || further "$@" than "${noted[@]:1}"; then
    echo 0
  else
    echo $((noted[0] + 1))
  fi
}

# To be called at every start, whoever put the job into the queue: after the loss of a node, and after
# preemption, Slurm does it by itself. Ends the job that does not get further.
count_start() {
  local vain=0
  if (( ${SLURM_RESTART_COUNT:-0} > 0 )); then
    vain="$(restarts_in_vain "$@")"
    say "restart ${SLURM_RESTART_COUNT}: $vain of at most $NEMO_GDPO_MAX_RESTARTS in a row without getting further"
  else
    rm -f "$restarts_file"
  fi
  if (( vain > NEMO_GDPO_MAX_RESTARTS )); then
    give_up "$vain"
    exit 1
  fi
  # Not what is furthest so far: a restart in vain keeps it.
  (( vain > 0 )) || echo "0 $*" >"$restarts_file"
  (( vain == 0 )) || sed -i "s/^[0-9]*/$vain/" "$restarts_file"
}

give_up() {
  say "stopped after $1 restarts in a row that brought nothing new (NEMO_GDPO_MAX_RESTARTS); the reason" \
    "stands above; submit it again to resume"
  rm -f "$restarts_file"
}

# Put this job into the queue again, unless it has been there too often without getting further.
requeue() {
  local vain
  vain="$(restarts_in_vain "$@")"
  if (( vain > NEMO_GDPO_MAX_RESTARTS )); then
    give_up "$((vain - 1))"
    return 0
  fi
  say "goes back into the queue ($vain of at most $NEMO_GDPO_MAX_RESTARTS restarts in a row without getting further)"
  scontrol requeue "$SLURM_JOB_ID"
}

# End the job with a status. 0 is done; 2 means that only a person can help; 75 that a signal stopped
# the work, and anything else that a rank or a node failed: both resume, so the job goes back into the
# queue. Further arguments: how far it has come.
leave() {
  local status=$1
  shift
  say "ended with $status"
  if (( status == 0 || status == 2 )); then
    rm -f "$restarts_file"
  elif [[ -z "$cancelled" ]]; then
    requeue "$@"
  fi
  exit "$status"
}

# The value of KEY=VALUE among arguments, the last one's; a default where there is none.
value_of() {
  local key=$1 found=$2 argument
  shift 2
  for argument in "$@"; do
    [[ "$argument" != "$key"=* ]] || found="${argument#*=}"
  done
  echo "$found"
}
