#!/usr/bin/env bash
# Trains on a Slurm cluster.
#
#   [GPUS=8] [GPUS_PER_NODE=8] [CPUS_PER_TASK=5] [SRUN_ARGS='--qos=low'] \
#       tools/slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [options of tools/train.py]
#
# PORT on the first machine is drawn by chance unless it is given.
# GPUS is the number of processes on all machines together; the environment must lie on a disk that all of them see.
set -euo pipefail
# shellcheck source=tools/_launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/_launch.sh"
[[ ${1:-} != -h && ${1:-} != --help ]] || usage 0
(($# >= 4)) || usage 2
check_config "$3"
choose_python
run_slurm "$1" "$2" "$TOOLS/train.py" "$3" --work-dir "$4" "${@:5}"
