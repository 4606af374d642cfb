# The whole job of an experiment, sourced by the *.sub files that name one (`experiment=...`). It checks
# itself, computes the reference's log-probabilities and trains on all its nodes with one task per GPU.
# When training is done, it submits the remaining stages as separate jobs:
#
#   export (no GPU) -> sampling of the base and of the trained model -> evaluation and report
#
# They are separate because each needs one GPU or none (four to sample a 70B model) and as a step would
# hold all 16 or 32 GPUs for up to an hour. They are submitted at the end rather than at the start with
# a dependency on this job: cancelling it then cancels everything, a failure leaves nothing waiting, and
# a requeue submits nothing twice. At the start `sbatch --test-only` asks whether the cluster would
# accept them. --dependency=afterok, which survives a requeue, puts them in order; with
# --kill-on-invalid-dep, if one fails or is cancelled, the jobs that wait for it are cancelled.
#
# Finished work is skipped: a complete run is not trained again and a complete export not written again,
# sampling adds only missing rows, and evaluation reuses what it has computed.
# TP, PP and CP come from the experiment, the numbers of nodes and ranks from the job; DP follows.
#
# A .sub sets `experiment` and may set `sample_gpus`, the GPUs that one copy of the model needs for
# sampling, and `likelihoods=no` if the model does not fit on the single GPU of the evaluation.
# shellcheck shell=bash
set -uo pipefail

# shellcheck source=slurm/env.sh
source "${NEMO_GDPO_HOME:-$SLURM_SUBMIT_DIR}/slurm/env.sh" || exit 2
use_container
expect_signals

name="${experiment:?is set by the .sub}"
name="${name%%_*}"
gpus="${SLURM_GPUS_ON_NODE:-0}"
ranks=$((gpus > 0 ? gpus : ${SLURM_NTASKS_PER_NODE:-1}))
# Later ones win, so arguments of the job come last. The export is a separate job.
overrides=(experiment="$experiment" trainer.devices="$ranks" trainer.num_nodes="$SLURM_JOB_NUM_NODES"
  export_hf=false "$@")

say "$experiment on $SLURM_JOB_NUM_NODES nodes ($SLURM_JOB_NODELIST), $ranks ranks each"

# --- what is there -----------------------------------------------------------------------------

# Run slurm/stages.py and read what it prints: where the run writes, and which stages are done.
declare -A run=()
read_stages() {
  local file key value
  file="$(mktemp)"
  on_first_node "$@" >"$file" &
  follow $! || { local status=$?; rm -f "$file"; return "$status"; }
  while read -r key value; do run[$key]=$value; done <"$file"
  rm -f "$file"
}

# Print how far the run has come: the step of its newest checkpoint, then the shards of the reference,
# which count while there is no checkpoint.
progress() {
  local manifest newest=0 step
  for manifest in "${run[output]}"/checkpoints/step_*/manifest.json; do
    [[ -f "$manifest" ]] || continue
    step="${manifest%/manifest.json}"
    step=$((10#${step##*/step_}))
    (( step <= newest )) || newest=$step
  done
  echo "$newest $(find "${run[references]}" -name '*.safetensors' -size +0 2>/dev/null | wc -l)"
}

# --- stages ------------------------------------------------------------------------------------

# Check on one node all that can be known before the ranks start: versions and hardware, then the
# configuration, with every problem named at once.
# shellcheck disable=SC2016  # expanded on the node
check='
  "$0" -m nemo_gdpo doctor >&2 && "$0" -m nemo_gdpo validate "${@:2}" >&2 && exec "$0" "$1" plan "${@:2}"
'
check() {
  read_stages bash -c "$check" "$NEMO_GDPO_TRAINING_PYTHON" "$NEMO_GDPO_HOME/slurm/stages.py" \
    "${overrides[@]}"
}

# Reference and training. If a rank fails, srun ends the others at once (--kill-on-bad-exit); if it is
# only slow to finish, writing the last of its logs, srun waits for it (--wait=0).
train() {
  local status noted
  local -a flags=()
  read -ra flags <<<"$NEMO_GDPO_SRUN_FLAGS"
  local -x NEMO_GDPO_STATUS_FILE="$PWD/.nemo-gdpo-status-$SLURM_JOB_ID"
  rm -f "$NEMO_GDPO_STATUS_FILE"
  # For a checkpoint in time even if no signal comes.
  local -x NEMO_GDPO_END_TIME
  NEMO_GDPO_END_TIME="$(end_time)" || unset NEMO_GDPO_END_TIME
  [[ -z "$NEMO_GDPO_INTERFACE" ]] || local -x MASTER_ADDR="${MASTER_ADDR:-$(own_address)}"
  srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks=$((SLURM_JOB_NUM_NODES * ranks)) --ntasks-per-node="$ranks" \
    "${CPUS[@]}" --kill-on-bad-exit=1 --wait=0 "${flags[@]}" "${CONTAINER[@]}" "${INSIDE[@]}" \
    "$NEMO_GDPO_TRAINING_PYTHON" -m nemo_gdpo train "${overrides[@]}" &
  follow $!
  status=$?
  # srun returns the highest status of all tasks, including those that it killed; the file has the
  # status of the first rank that left one.
  noted="$(cat "$NEMO_GDPO_STATUS_FILE" 2>/dev/null)"
  rm -f "$NEMO_GDPO_STATUS_FILE"
  if (( status == 0 )) || [[ "$noted" == 2 ]]; then
    return "${noted:-0}"
  fi
  say "a rank failed (srun: $status); which one stands above"
  return "$status"
}

# --- the jobs that come after ------------------------------------------------------------------

prompts="$NEMO_GDPO_PROMPTS"
test_only=
read -ra sampling <<<"$NEMO_GDPO_SAMPLING"
read -ra evaluation <<<"$NEMO_GDPO_EVALUATION"
if (( ${sample_gpus:=1} > 1 )); then
  sampling+=(generation.tensor_parallel_size="$sample_gpus" generation.ray.replicas=1)
fi

# Submit a job called EXPERIMENT-STAGE and print its number; with `test_only` set, only ask whether the
# cluster would accept it. FLAGS is one argument, split into words.
#   submit STAGE FLAGS SCRIPT ARGUMENTS...
submit() {
  local stage=$1 script=$3 variable
  local -a flags=(--parsable --job-name="$experiment-$stage" --partition="$SLURM_JOB_PARTITION")
  [[ "${SLURM_JOB_ACCOUNT:-(null)}" == "(null)" ]] || flags+=(--account="$SLURM_JOB_ACCOUNT")
  [[ "${SLURM_JOB_QOS:-(null)}" == "(null)" ]] || flags+=(--qos="$SLURM_JOB_QOS")
  # shellcheck disable=SC2206  # words
  flags+=($2 $NEMO_GDPO_CHAIN_FLAGS $test_only)
  shift 3
  (
    # sbatch would read this job's variables as settings of the new one.
    for variable in "${!SLURM_@}"; do
      [[ "$variable" == SLURM_CONF ]] || unset "$variable"
    done
    exec sbatch "${flags[@]}" "$NEMO_GDPO_HOME/slurm/$script" "$@"
  )
}

# Print the flags of a job that waits for others, given as :1:2; nothing if there are none.
after() {
  [[ -z "$test_only" && -n "$1" ]] || return 0
  echo "--dependency=afterok$1 --kill-on-invalid-dep=yes"
}

submit_export() {
  submit export "$NEMO_GDPO_EXPORT_FLAGS" convert.sub megatron-to-hf "${run[checkpoint]}" \
    "${run[output]}/hf"
}

#   submit_sampling NAME MODEL JOBS-BEFORE
submit_sampling() {
  submit "sample-$1" "--nodes=1 --gpus-per-node=$sample_gpus --cpus-per-task=8 $NEMO_GDPO_SAMPLE_FLAGS $(after "$3")" \
    generate.sub model.restore_from_path="$2" data.prompts_path="$prompts" \
    output_dir="${run[output]}/samples/$1" "${sampling[@]}"
}

#   submit_evaluation JOBS-BEFORE
submit_evaluation() {
  local output="${run[output]}" runs
  local -a given=()
  runs="$name: $output/samples/$name"
  [[ -z "${run[base]}" ]] || runs="base: $output/samples/base, $runs"
  if [[ -n "${run[base]}" && "${likelihoods:-yes}" == yes ]]; then
    given=(evaluation.reference_model="${run[base]}" evaluation.models="{base: ${run[base]}, $name: $output/hf}")
  fi
  submit evaluate "$(after "$1")" evaluate.sub evaluation.runs="{$runs}" \
    evaluation.training="{$name: $output}" "${given[@]}" output_dir="$output/evaluation" "${evaluation[@]}"
}

# Submit the stages that are left.
chain() {
  local export='' base='' trained='' job
  if [[ -z "${run[exported]}" ]]; then
    export="$(submit_export)" || return
  fi
  if [[ -z "$prompts$test_only" ]]; then
    say "export ${export:-is there}; there are no prompts to sample for (no text in data.validation_path):" \
      "export NEMO_GDPO_PROMPTS=FILE and submit this again"
    return 0
  fi
  if [[ -n "${run[base]}" ]]; then
    base="$(submit_sampling base "${run[base]}" '')" || return
  elif [[ -z "$test_only" ]]; then
    say "model.restore_from_path is no Hugging Face directory: the base is neither sampled nor compared with"
  fi
  trained="$(submit_sampling "$name" "${run[output]}/hf" "${export:+:$export}")" || return
  job="$(submit_evaluation "${base:+:$base}:$trained")" || return
  [[ -n "$test_only" ]] || say "submitted: export ${export:-is there}, sampling ${base:+$base and }$trained," \
    "evaluation $job; the report will be ${run[output]}/evaluation/report.html"
}

# Say so if the cluster would refuse them, while there is still time to act on it.
try_chain() {
  local said
  [[ "$NEMO_GDPO_CHAIN" == yes ]] || return 0
  said="$(test_only=--test-only; chain 2>&1)" ||
    say "the jobs after training would be refused (see NEMO_GDPO_CHAIN_FLAGS in slurm/env.sh): ${said//$'\n'/ }"
}

# --- all of it ---------------------------------------------------------------------------------

check || {
  status=$?
  # 143 is TERM: the job is cancelled, or preempted with a grace time and so without Slurm's own requeue.
  if [[ -n "$stopping" ]] || (( status == 143 )); then
    leave 75 0 0
  fi
  # No requeue: the interpreter, the container or the node is not as it should be.
  (( status == 2 )) || say "the checks failed with $status; nothing was begun, and it is not tried again"
  exit "$status"
}
# shellcheck disable=SC2046  # two numbers
count_start $(progress)

if [[ -n "${run[checkpoint]}" ]]; then
  say "trained already: ${run[checkpoint]}"
else
  try_chain
  # shellcheck disable=SC2046
  [[ -z "$stopping" ]] || leave 75 $(progress)
  # shellcheck disable=SC2046
  train || leave $? $(progress)
fi
[[ -z "$cancelled" ]] || leave 0

read_stages "$NEMO_GDPO_TRAINING_PYTHON" "$NEMO_GDPO_HOME/slurm/stages.py" finish "${overrides[@]}" || leave $? 0 0
prompts="${prompts:-${run[prompts]}}"
if [[ -z "${run[checkpoint]}" ]]; then
  say "training reported success, but ${run[output]}/checkpoints has no complete checkpoint of the last step"
  leave 2
fi
if [[ "$NEMO_GDPO_CHAIN" != yes ]]; then
  say "done: ${run[checkpoint]}; nothing is submitted (NEMO_GDPO_CHAIN=$NEMO_GDPO_CHAIN)"
elif ! chain; then
  say "trained: ${run[checkpoint]}; but the jobs after training were refused, for the reason that sbatch" \
    "gives above: change NEMO_GDPO_CHAIN_FLAGS and submit this again; training will be skipped"
  leave 2
fi
leave 0
