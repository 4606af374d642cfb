# What all jobs of this directory have in common, whatever their work: logging, running steps (in a
# container, if there is one), answering signals, and going back into the queue. Sourced by
# slurm/env.sh.
# shellcheck shell=bash

# Print one line on stderr, with the time, because a requeued job appends to the same log.
say() {
  printf '%(%F %T)T job %s: %s\n' -1 "${SLURM_JOB_ID:-none}" "$*" >&2
}

# --- steps -------------------------------------------------------------------------------------

# How a step enters the container: by flags of srun (pyxis), or by a prefix to its command (Apptainer).
# A Slurm without pyxis rejects its flags, even in #SBATCH lines, so they are passed only with an image.
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

# srun gives each task one CPU unless told otherwise: it ignores the job's --cpus-per-task.
CPUS=()
[[ -z "${SLURM_CPUS_PER_TASK:-}" ]] || CPUS=(--cpus-per-task="$SLURM_CPUS_PER_TASK")

# Run a command on the first node, where this script runs, too. Start it in the background: there it
# replaces its subshell, so that a signal to that process reaches srun.
on_first_node() {
  exec srun --overlap --nodes=1 --ntasks=1 --ntasks-per-node=1 --nodelist="$SLURMD_NODENAME" "${CPUS[@]}" \
    "${CONTAINER[@]}" "${INSIDE[@]}" "$@"
}

# Print this node's address: the one on NEMO_GDPO_INTERFACE, or the first one it has.
own_address() {
  if [[ -n "$NEMO_GDPO_INTERFACE" ]]; then
    ip -4 -o addr show dev "$NEMO_GDPO_INTERFACE" | awk '{sub("/.*", "", $4); print $4; exit}'
  else
    hostname -I | awk '{print $1}'
  fi
}

# --- signals -----------------------------------------------------------------------------------

# USR1 reaches only this script, five minutes before the job's time is up (#SBATCH --signal=B:USR1@300);
# it is passed on to the step that is being followed.
# TERM reaches this script and every task: the job was cancelled, or it is preempted without a grace
# time, and then Slurm requeues it by itself. It is not passed on: to srun, TERM means to kill its tasks.
# With a grace time, preemption sends TERM to the tasks only. To this script they seem to have stopped by
# themselves, so it requeues the job.
stopping=
cancelled=
followed=
expect_signals() {
  trap 'stopping=1; say "USR1: time is almost up"; [[ -z "$followed" ]] || kill -USR1 "$followed" 2>/dev/null' USR1
  trap 'cancelled=1; say "TERM: cancelled or preempted; Slurm decides what becomes of the job"' TERM
}

# Print when Slurm will end this job, in Unix seconds; fails if it does not say. SLURM_JOB_END_TIME comes
# second: older Slurm does not set it, and it does not follow a limit that was changed.
end_time() {
  local told
  told="$(SLURM_TIME_FORMAT=%s squeue --noheader --jobs="$SLURM_JOB_ID" --format=%e 2>/dev/null)"
  [[ "$told" =~ ^[0-9]+$ ]] || told="${SLURM_JOB_END_TIME:-}"
  [[ -n "$told" ]] && echo "$told"
}

# Wait for a background process and return its status. (A bare `wait` returns at every trapped signal.)
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

# Holds "COUNT PROGRESS...": the number of restarts in a row without progress, and how far the job had
# come. It lies in the job's directory, beside its log, because the next start may be on other nodes.
restarts_file=".nemo-gdpo-restarts-${SLURM_JOB_ID:-none}"

# Whether the numbers before `than` are ahead of those after it; the first difference decides.
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

# Print how many starts in a row, this one included, began without progress. The arguments say how far
# the job has come, as numbers that grow.
restarts_in_vain() {
  local -a noted=()
  [[ ! -f "$restarts_file" ]] || read -ra noted <"$restarts_file"
  if (( ${#noted[@]} == 0 )) || further "$@" than "${noted[@]:1}"; then
    echo 0
  else
    echo $((noted[0] + 1))
  fi
}

# Call this at every start, with the same arguments: it ends a job that makes no progress. Counting only
# in `requeue` would miss restarts by Slurm itself, after the loss of a node or preemption.
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
  # A restart in vain changes the count only, and keeps how far the job had come.
  (( vain > 0 )) || echo "0 $*" >"$restarts_file"
  (( vain == 0 )) || sed -i "s/^[0-9]*/$vain/" "$restarts_file"
}

give_up() {
  say "stopped after $1 restarts in a row that brought nothing new (NEMO_GDPO_MAX_RESTARTS); the reason" \
    "stands above; submit it again to resume"
  rm -f "$restarts_file"
}

# Put this job back into the queue, unless it has restarted too often without progress.
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

# End the job with a status: 0 is done, 2 needs a person, 75 was stopped by a signal, and anything else
# means that a rank or a node failed. The last two can resume, so the job goes back into the queue.
# More arguments: how far it has come.
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

# Print the VALUE of the last KEY=VALUE among the arguments, or the default.
#   value_of KEY DEFAULT ARGUMENTS...
value_of() {
  local key=$1 found=$2 argument
  shift 2
  for argument in "$@"; do
    [[ "$argument" != "$key"=* ]] || found="${argument#*=}"
  done
  echo "$found"
}
