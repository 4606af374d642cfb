# The whole job of an experiment, for the *.sub files that name one (`experiment=...`): it checks
# itself, computes the reference's log-probabilities and trains on all its nodes, one task a GPU, and
# when that is done submits what is left as jobs of their own:
#
#   export (no GPU) -> sampling of the base and of the trained model -> evaluation and report
#
# Jobs of their own, because each of those needs one GPU or none (sampling of a 70B model: four) and
# would hold 16 or 32 for an hour. They are submitted at the end, not at the start with a dependency
# on this job: until training is over there is nothing to take along when it is cancelled, nothing that
# waits in vain when it fails, and nothing to be submitted twice when it is requeued. Whether the
# cluster will take them is asked at the start (`sbatch --test-only`). Among themselves they are chained
# by --dependency=afterok, which outlasts a requeue, and --kill-on-invalid-dep: if one fails or is
# cancelled, those that wait for it go, too.
#
# Every stage that is done is passed over: a complete run is not started again, nor is a complete export
# written again; sampling makes the rows that are missing, and evaluation keeps what it has computed.
# TP, PP and CP are the experiment's; ranks and nodes are what the job was given, and DP what they leave.
#
# What a .sub may set: `experiment`; `sample_gpus`, GPUs that one copy of the model needs for sampling;
# `likelihoods=no` where the model does not fit on the one GPU of the evaluation.
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
# Later ones win: what the job was given, its arguments, and that the export is another job's.
overrides=(experiment="$experiment" trainer.devices="$ranks" trainer.num_nodes="$SLURM_JOB_NUM_NODES"
  export_hf=false "$@")

say "$experiment on $SLURM_JOB_NUM_NODES nodes ($SLURM_JOB_NODELIST), $ranks ranks each"

# --- what is there -----------------------------------------------------------------------------

# Lines of slurm/stages.py: where the run writes, and what is done.
declare -A run=()
read_stages() {
  local file key value
  file="$(mktemp)"
  on_first_node "$@" >"$file" &
  follow $! || { local status=$?; rm -f "$file"; return "$status"; }
  while read -r key value; do run[$key]=$value; done <"$file"
  rm -f "$file"
}

# How far the run has come: its newest checkpoint, and before there is one the shards of the reference.
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

# Everything that can be known before the ranks start, on one node: versions and hardware, then every
# problem of the configuration at once.
# shellcheck disable=SC2016  # expanded on the node
check='
  "$0" -m nemo_gdpo doctor >&2 && "$0" -m nemo_gdpo validate "${@:2}" >&2 && exec "$0" "$1" plan "${@:2}"
'
check() {
  read_stages bash -c "$check" "$NEMO_GDPO_TRAINING_PYTHON" "$NEMO_GDPO_HOME/slurm/stages.py" \
    "${overrides[@]}"
}

# Reference and training. A rank that ends badly takes the others along at once (--kill-on-bad-exit);
# one that is slow at the end, writing the last of its logs, is waited for (--wait=0).
train() {
  local status noted
  local -a flags=()
  read -ra flags <<<"$NEMO_GDPO_SRUN_FLAGS"
  local -x NEMO_GDPO_STATUS_FILE="$PWD/.nemo-gdpo-status-$SLURM_JOB_ID"
  rm -f "$NEMO_GDPO_STATUS_FILE"
  [[ -z "$NEMO_GDPO_INTERFACE" ]] || local -x MASTER_ADDR="${MASTER_ADDR:-$(own_address)}"
  srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks=$((SLURM_JOB_NUM_NODES * ranks)) --ntasks-per-node="$ranks" \
    "${CPUS[@]}" --kill-on-bad-exit=1 --wait=0 "${flags[@]}" "${CONTAINER[@]}" "${INSIDE[@]}" \
    "$NEMO_GDPO_TRAINING_PYTHON" -m nemo_gdpo train "${overrides[@]}" &
  follow $!
  status=$?
  # srun's status is the highest of all tasks', also of those that it killed; the file has the word of
  # the first rank that had one.
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

# Submit a job called EXPERIMENT-STAGE; prints its number. With `test_only` only ask whether it would be
# taken. FLAGS are words.
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
    # This job's own would be taken for the new one's.
    for variable in "${!SLURM_@}"; do
      [[ "$variable" == SLURM_CONF ]] || unset "$variable"
    done
    exec sbatch "${flags[@]}" "$NEMO_GDPO_HOME/slurm/$script" "$@"
  )
}

# The flags of a job that waits for others (:1:2), or for none.
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

# Submit all that is left.
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

# Whether the cluster would take them, while there is time to do something about it.
try_chain() {
  local said
  [[ "$NEMO_GDPO_CHAIN" == yes ]] || return 0
  said="$(test_only=--test-only; chain 2>&1)" ||
    say "jobs after this one would be refused (see NEMO_GDPO_CHAIN_FLAGS in slurm/env.sh): ${said//$'\n'/ }"
}

# --- all of it ---------------------------------------------------------------------------------

check || {
  status=$?
  [[ -z "$stopping" ]] || leave 75 0 0
  # Not the queue: an interpreter, a container or a node that is not as it should be.
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
  say "training said that it is done, and ${run[output]}/checkpoints has no complete checkpoint of the last step"
  leave 2
fi
if [[ "$NEMO_GDPO_CHAIN" != yes ]]; then
  say "done: ${run[checkpoint]}; nothing is submitted (NEMO_GDPO_CHAIN=$NEMO_GDPO_CHAIN)"
elif ! chain; then
  say "trained: ${run[checkpoint]}; what comes after was not taken, sbatch says why above: change" \
    "NEMO_GDPO_CHAIN_FLAGS and submit this again, training is passed over"
  leave 2
fi
leave 0
