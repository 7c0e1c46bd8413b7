# shellcheck shell=bash
# What dist_*.sh and slurm_*.sh share; sourced, not run. Nothing here depends on the working directory.
TOOLS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
ROOT=$(dirname "$TOOLS")

die() {
    printf '%s: %s\n' "$(basename "$0")" "$1" >&2
    exit 2
}

# The comment at the top of the script that was called.
usage() {
    sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p}' "$0" >&2
    exit "$1"
}

# PYTHON=, an activated environment, the environment of tools/setup_env.sh, python3: the first there is.
choose_python() {
    # shellcheck source=tools/_venv.sh
    source "$TOOLS/_venv.sh"
    if [[ -z ${PYTHON:-} ]]; then
        if [[ -n ${VIRTUAL_ENV:-}${CONDA_PREFIX:-} ]]; then
            PYTHON=python
        elif [[ -x $VENV/bin/python ]]; then
            PYTHON=$VENV/bin/python
        else
            PYTHON=python3
        fi
    fi
    command -v "$PYTHON" >/dev/null || die "PYTHON=$PYTHON is not a program on this machine"
    # In a checkout its own mmkd comes first; in an installed package there is nothing to add.
    if [[ -f $ROOT/mmkd/__init__.py ]]; then export PYTHONPATH=$ROOT${PYTHONPATH:+:$PYTHONPATH}; fi
}

# A config is a file, or a name in a package such as mmdet::retinanet/retinanet_r18_fpn_1x_coco.py.
check_config() { [[ $1 == *::* || -f $1 ]] || die "no config file '$1' (working directory $PWD)"; }

check_checkpoint() { [[ $1 == *://* || -f $1 ]] || die "no checkpoint file '$1' (working directory $PWD)"; }

check_count() { [[ $2 =~ ^[1-9][0-9]*$ ]] || die "$1 must be a whole number above 0, not '$2'"; }

has_gpu() { [[ ${CUDA_VISIBLE_DEVICES-unset} != '' ]] && command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q '^GPU'; }

# Below the ports that the system gives to anybody, so that nothing takes it before torchrun listens.
free_port() {
    "$PYTHON" -c 'import random, socket
for port in random.sample(range(20000, 30000), 50):
    with socket.socket() as tried:
        if tried.connect_ex(("127.0.0.1", port)):
            print(port)
            break'
}

# run_distributed PROCESSES SCRIPT ARGUMENTS...: through torchrun, on NNODES machines.
run_distributed() {
    local processes=$1 threads=1
    shift
    NNODES=${NNODES:-1} NODE_RANK=${NODE_RANK:-0} MASTER_ADDR=${MASTER_ADDR:-127.0.0.1}
    check_count NNODES "$NNODES"
    ((NNODES == 1)) || [[ $MASTER_ADDR != 127.0.0.1 ]] || die "NNODES=$NNODES needs MASTER_ADDR: the address of the first machine"
    if [[ -z ${PORT:-} ]]; then
        if ((NNODES > 1)); then PORT=29500; else PORT=$(free_port); fi
    fi
    if ! has_gpu; then
        threads=$(($(nproc 2>/dev/null || echo 1) / processes))
        ((threads > 0)) || threads=1
    fi
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$threads}
    exec "$PYTHON" -m torch.distributed.run --nnodes="$NNODES" --node-rank="$NODE_RANK" \
        --master-addr="$MASTER_ADDR" --master-port="$PORT" --nproc-per-node="$processes" "$@"
}

# run_slurm PARTITION JOB_NAME SCRIPT ARGUMENTS...: one process a GPU.
run_slurm() {
    local partition=$1 job_name=$2 gpus=${GPUS:-8} per_node srun_args=()
    shift 2
    check_count GPUS "$gpus"
    per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}
    check_count GPUS_PER_NODE "$per_node"
    check_count CPUS_PER_TASK "${CPUS_PER_TASK:-5}"
    ((gpus % per_node == 0)) || die "GPUS ($gpus) must be a multiple of GPUS_PER_NODE ($per_node)"
    command -v srun >/dev/null || die "srun is not on this machine: run this on a login node of a Slurm cluster"
    read -ra srun_args <<<"${SRUN_ARGS:-}"
    # MMEngine's default is 29500 for every job: two whose first machine is the same would meet there
    export MASTER_PORT=${PORT:-${MASTER_PORT:-$((20000 + RANDOM % 9000))}}
    exec srun -p "$partition" --job-name="$job_name" --gres=gpu:"$per_node" --ntasks="$gpus" \
        --ntasks-per-node="$per_node" --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 \
        "${srun_args[@]}" "$PYTHON" -u "$@" --launcher slurm
}
