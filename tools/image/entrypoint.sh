#!/bin/bash
# What the container runs: a verb of nemo-gdpo, or any other program as it is.
#
#   docker run IMAGE train experiment=gdpo_llama3_8b      nemo-gdpo train experiment=gdpo_llama3_8b
#   docker run IMAGE bash                                 bash
#
# Everything is exec: the container's signals reach the program, and its status is the container's.
set -euo pipefail

case "${1:---help}" in
  # Verbs first, because some are names of other programs, too (ImageMagick has a convert).
  validate | prepare | convert | reference | train | generate | evaluate | doctor | label | pairs | plan | rounds | help | -*)
    set -- nemo-gdpo "$@"
    ;;
  *)
    # No such program: a verb with a slip of the pen, for which nemo-gdpo has an answer.
    command -v -- "$1" >/dev/null || set -- nemo-gdpo "$@"
    ;;
esac

# NVIDIA's images choose CUDA's libraries for the driver in a script of their own. What it prints goes
# to stderr: stdout is the program's.
nvidia=/opt/nvidia/nvidia_entrypoint.sh
if [[ -x "$nvidia" ]]; then
  exec 3>&1 1>&2
  # shellcheck disable=SC2016  # expanded by the inner shell
  exec "$nvidia" /bin/bash -c 'exec "$@" 1>&3 3>&-' bash "$@"
fi
exec "$@"
