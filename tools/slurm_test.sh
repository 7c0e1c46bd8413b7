#!/usr/bin/env bash
# Tests a checkpoint on a Slurm cluster.
#
#   [GPUS=8] [GPUS_PER_NODE=8] [CPUS_PER_TASK=5] [SRUN_ARGS='--qos=low'] \
#       tools/slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [options of tools/test.py]
#
# GPUS is the number of processes on all machines together.
set -euo pipefail
# shellcheck source=tools/_launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/_launch.sh"
[[ ${1:-} != -h && ${1:-} != --help ]] || usage 0
(($# >= 4)) || usage 2
check_config "$3"
check_checkpoint "$4"
choose_python
run_slurm "$1" "$2" "$TOOLS/test.py" "$3" "$4" "${@:5}"
