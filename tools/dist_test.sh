#!/usr/bin/env bash
# Tests a checkpoint on several GPUs, or with several processes on a machine without a GPU.
#
#   tools/dist_test.sh CONFIG CHECKPOINT GPUS [options of tools/test.py]
#
# NNODES, NODE_RANK, MASTER_ADDR, PORT and PYTHON: as in dist_train.sh.
set -euo pipefail
# shellcheck source=tools/_launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/_launch.sh"
[[ ${1:-} != -h && ${1:-} != --help ]] || usage 0
(($# >= 3)) || usage 2
check_config "$1"
check_checkpoint "$2"
check_count GPUS "$3"
choose_python
run_distributed "$3" "$TOOLS/test.py" "$1" "$2" --launcher pytorch "${@:4}"
