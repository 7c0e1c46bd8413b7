#!/usr/bin/env bash
# Trains on several GPUs, or with several processes on a machine without a GPU, on one or more machines.
#
#   tools/dist_train.sh CONFIG GPUS [options of tools/train.py]
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=10.0.0.1 PORT=29500 tools/dist_train.sh CONFIG GPUS    on each machine
#
# GPUS       processes on this machine
# PORT       default: a free one on one machine, 29500 on several
# PYTHON     default: the activated environment, else .venv of the checkout
set -euo pipefail
# shellcheck source=tools/_launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/_launch.sh"
[[ ${1:-} != -h && ${1:-} != --help ]] || usage 0
(($# >= 2)) || usage 2
check_config "$1"
check_count GPUS "$2"
choose_python
run_distributed "$2" "$TOOLS/train.py" "$1" --launcher pytorch "${@:3}"
