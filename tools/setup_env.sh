#!/usr/bin/env bash
# Makes the virtual environment .venv of this checkout: torch, mmcv with compiled ops, MMDetection, MMRazor, mmkd
# itself (editable). Safe to run again: seconds when nothing changed, and a failed run continues where it stopped.
#
#   tools/setup_env.sh           what training needs
#   tools/setup_env.sh --tests   what the tests need as well
#
# PYTHON=...    interpreter, 3.10 to 3.13 (default: the first that fits of python3, python3.12, 3.11, 3.10, 3.13)
# TORCH=...     arguments for pip in the place of torch==2.13.0, such as TORCH='torch==2.9.1'
# MMKD_VENV=... another folder for the environment
# FORCE_CUDA=1  CUDA ops although no GPU is seen here, such as on a login node
# MAX_JOBS=...  compilers at once (default: one a core, as far as memory reaches)
# MMKD_STACK=original   mmcv 2.1.0, mmengine 0.10.7, mmdet 3.3.0 instead of the maintained forks, in .venv-original
set -euo pipefail
unset PYTHONPATH PYTHONHOME
export PYTHONNOUSERSITE=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
STACK=${MMKD_STACK:-forks}
# shellcheck source=tools/_venv.sh
source "$ROOT/tools/_venv.sh"
if [[ $STACK == original ]]; then
    PARTS=$ROOT/requirements/original MMCV=mmcv
else
    PARTS=$ROOT/requirements MMCV=onedl-mmcv
fi
STATE=$VENV/.mmkd
LOG=$STATE/setup.log
ROLE=run
STEP=0
OPS=cpu

say() { printf '[set-up] %s\n' "$*"; }

fail() {
    printf '[set-up] ERROR: %s\n' "$1" >&2
    shift
    for line in "$@"; do printf '[set-up]   %s\n' "$line" >&2; done
    exit 1
}

parse_arguments() {
    case "${1:-}" in
        '') ;;
        --tests) ROLE=tests ;;
        -h | --help)
            sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
            exit 0
            ;;
        *) fail "unknown argument '$1'" "usage: tools/setup_env.sh [--tests]" ;;
    esac
}

# ---- what the machine has -------------------------------------------------------------------------------------------

python_version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }

python_fits() {
    case "$(python_version "$1")" in
        3.10 | 3.11 | 3.12 | 3.13) return 0 ;;
        *) return 1 ;;
    esac
}

choose_python() {
    local name
    if [[ -n ${PYTHON:-} ]]; then
        command -v "$PYTHON" >/dev/null || fail "PYTHON=$PYTHON is not a program on this machine"
        python_fits "$PYTHON" || fail "PYTHON=$PYTHON is Python $(python_version "$PYTHON"); mmkd needs 3.10 to 3.13"
        return
    fi
    for name in python3 python3.12 python3.11 python3.10 python3.13 python; do
        if command -v "$name" >/dev/null && python_fits "$name"; then
            PYTHON=$name
            return
        fi
    done
    fail "no Python 3.10 to 3.13 was found (python3 is '$(python_version python3 || echo missing)')" \
        "install one (Debian, Ubuntu: apt install python3.11 python3.11-venv python3.11-dev; where the distribution's are too" \
        "new: from pyenv, conda or uv)" \
        "or name one: PYTHON=/path/to/python3.11 $0"
}

check_python_parts() {
    "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$PYTHON cannot make virtual environments" "Debian, Ubuntu: apt install python$(python_version "$PYTHON")-venv"
    "$PYTHON" -c 'import os, sysconfig, sys
sys.exit(not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")))' ||
        fail "$PYTHON has no C headers (Python.h), which mmcv's compiled ops need" \
            "Debian, Ubuntu: apt install python$(python_version "$PYTHON")-dev"
}

check_compiler() {
    local compiler=${CXX:-g++}
    # shellcheck disable=SC2086  # CXX may hold a wrapper and a compiler
    $compiler -x c++ -std=c++17 -fsyntax-only - <<<'#include <vector>' 2>/dev/null ||
        fail "no working C++17 compiler ($compiler), which mmcv's compiled ops need" \
            "Debian, Ubuntu: apt install build-essential; Fedora: dnf install gcc-c++; or set CXX"
}

check_disk() {
    local need=$1 free
    free=$(df -Pk "$(nearest_folder "$VENV")" | awk 'NR == 2 { print int($4 / 1024) }')
    ((free >= need)) || fail "only $free MB are free at $VENV; the environment needs about $need MB" \
        "make room, or put it elsewhere: MMKD_VENV=/a/larger/disk/venv $0"
}

nearest_folder() {
    local folder=$1
    while [[ ! -d $folder ]]; do folder=$(dirname "$folder"); done
    printf '%s' "$folder"
}

has_gpu() { command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q '^GPU'; }

# FORCE_CUDA=1 asks for CUDA where no GPU is seen, such as on the login node of a cluster.
wants_cuda() { has_gpu || [[ ${FORCE_CUDA:-} == 1 ]]; }

# Sets OPS, and says why: CUDA ops need a GPU (or FORCE_CUDA=1), a CUDA toolkit and a torch built for the same CUDA.
choose_ops() {
    local toolkit torch_cuda seen='an NVIDIA GPU'
    OPS=cpu
    if ! wants_cuda; then
        say "no NVIDIA GPU seen: mmcv's CPU ops (FORCE_CUDA=1 builds CUDA ops all the same, for another machine)"
        return
    fi
    has_gpu || seen='no GPU, but FORCE_CUDA=1'
    toolkit=$("$VENV/bin/python" -c 'from torch.utils.cpp_extension import CUDA_HOME; print(CUDA_HOME or "")' 2>>"$LOG")
    torch_cuda=$("$VENV/bin/python" -c 'import torch; print(torch.version.cuda or "")' 2>>"$LOG")
    if [[ -z $torch_cuda ]]; then
        say "$seen, but this torch was built without CUDA: mmcv's CPU ops (choose another with TORCH=)"
    elif [[ ! -x $toolkit/bin/nvcc ]]; then
        say "$seen, but no CUDA toolkit (nvcc): mmcv's CPU ops. Detectors will NOT train on the GPU:"
        say "install CUDA toolkit $torch_cuda (or set CUDA_HOME) and run this again"
    elif ! "$toolkit/bin/nvcc" --version | grep -q "release ${torch_cuda%%.*}\."; then
        say "$seen, but torch is for CUDA $torch_cuda and $toolkit/bin/nvcc is not: mmcv's CPU ops."
        say "Detectors will NOT train on the GPU: install CUDA toolkit $torch_cuda, or choose a torch with TORCH="
    else
        OPS=cuda
        say "$seen, and CUDA toolkit $torch_cuda: mmcv's CUDA ops"
        has_gpu || choose_architectures
    fi
}

# Without a GPU to ask, the ops are built for every kind that this torch knows.
choose_architectures() {
    [[ -n ${TORCH_CUDA_ARCH_LIST:-} ]] && return
    TORCH_CUDA_ARCH_LIST=$("$VENV/bin/python" - 2>>"$LOG" <<'PYTHON'
import re, torch
print(';'.join(f'{n[:-1]}.{n[-1]}' for n in re.findall(r'sm_(\d+)\b', torch._C._cuda_getArchFlags() or '')))
PYTHON
    ) || TORCH_CUDA_ARCH_LIST=
    export TORCH_CUDA_ARCH_LIST
    say "built for the GPUs $TORCH_CUDA_ARCH_LIST; TORCH_CUDA_ARCH_LIST=9.0 (your GPU's number) is much faster"
}

# One compiler takes up to about 2 GB.
compiler_jobs() {
    local cores memory
    cores=$(nproc 2>/dev/null || echo 1)
    memory=$(awk '/MemAvailable/ { print int($2 / 2000000) }' /proc/meminfo 2>/dev/null || echo "$cores")
    ((memory < 1)) && memory=1
    echo $((cores < memory ? cores : memory))
}

# ---- running steps --------------------------------------------------------------------------------------------------

tick() {
    local waited=0
    exec 9>&- 8<> <(:)
    while ! read -rt 60 -u 8 _; do # no `sleep`: it would outlive this and hold the caller's pipe open
        waited=$((waited + 1))
        printf '[set-up]      ... %d min so far\n' "$waited"
    done
}

# run_step TITLE ESTIMATE COMMAND...: output to the log; on failure its tail is shown and the script ends.
# COMMAND runs where `set -e` has no effect: a function must return its failures itself.
run_step() {
    local title=$1 estimate=$2 start=$SECONDS code=0 ticker
    shift 2
    STEP=$((STEP + 1))
    say "$STEP. $title (about $estimate)"
    printf '\n==== %s: %s\n' "$title" "$*" >>"$LOG"
    tick &
    ticker=$!
    # shellcheck disable=SC2064  # the number of this ticker, now
    trap "kill $ticker 2>/dev/null || true" EXIT
    "$@" >>"$LOG" 2>&1 </dev/null || code=$?
    kill "$ticker" 2>/dev/null || true
    wait "$ticker" 2>/dev/null || true
    trap - EXIT
    if ((code)); then
        printf -- '---- last lines of %s\n' "$LOG" >&2
        tail -n 30 "$LOG" >&2
        fail "step '$title' failed (exit code $code); the whole output is in $LOG" \
            "run the same command again: steps that are done are not repeated"
    fi
    say "   done in $((SECONDS - start)) s"
}

pip() { "$VENV/bin/python" -m pip "$@"; }

install() { pip install --prefer-binary -c "$PARTS/constraints.txt" -c "$STATE/torch-constraint.txt" "$@"; }

# ---- the steps ------------------------------------------------------------------------------------------------------

make_venv() {
    local existing
    if [[ -e $VENV/bin/python ]]; then
        existing=$(python_version "$VENV/bin/python" || echo broken)
        [[ $existing == "$(python_version "$PYTHON")" ]] && return
        [[ -d $STATE ]] || fail "$VENV is an environment of Python $existing that this script did not make" \
            "move it away, or choose another folder with MMKD_VENV="
        say "$VENV has Python $existing: made anew with $PYTHON"
        "$PYTHON" -m venv --clear "$VENV"
        mkdir -p "$STATE"
        return
    fi
    "$PYTHON" -m venv "$VENV"
    mkdir -p "$STATE"
}

torch_ready() {
    [[ -f $STATE/torch-constraint.txt && $(cat "$STATE/torch-asked" 2>/dev/null) == "$(torch_asked)" ]] &&
        "$VENV/bin/python" -c 'import torch' 2>/dev/null
}

torch_asked() { printf '%s' "${TORCH:-$(grep '^torch' "$ROOT/requirements/torch.txt")}"; }

# Without a GPU the small CPU build is looked for first: the default one brings several GB of CUDA libraries.
install_torch() {
    local asked cpu_index=https://download.pytorch.org/whl/cpu
    asked=$(torch_asked)
    rm -f "$STATE/torch-constraint.txt"
    # shellcheck disable=SC2086  # TORCH may hold several arguments
    if [[ -n ${TORCH:-} ]] || wants_cuda; then
        pip install $asked || return
    elif pip install "$asked+cpu"; then
        :
    elif "$VENV/bin/python" -c "import urllib.request as u; u.urlopen('$cpu_index/torch/', timeout=10)"; then
        pip install "$asked+cpu" --extra-index-url "$cpu_index" || return
    else
        pip install "$asked" || return
    fi
    printf '%s' "$asked" >"$STATE/torch-asked"
    # PyPI's build calls itself 2.13.0+cu130, pip knows it as 2.13.0
    "$VENV/bin/python" -c 'import importlib.metadata as m, torch; print("torch==" + m.version("torch"))' \
        >"$STATE/torch-constraint.part" &&
        mv "$STATE/torch-constraint.part" "$STATE/torch-constraint.txt"
}

# Not only imported: run. An isolated build, or one for another torch, has no ops or ops that do not load.
mmcv_works() {
    (cd / && "$VENV/bin/python" - "$OPS" "$(sed -n "s/^$MMCV==//p" "$PARTS/mmcv.txt")" "$(has_gpu && echo gpu)") <<'PYTHON'
import sys
import mmcv, torch
from mmcv.ops import get_compiling_cuda_version, nms
wanted, version, gpu = sys.argv[1:]
if mmcv.__version__ != version:
    sys.exit(f'mmcv {mmcv.__version__} instead of {version}')
if wanted == 'cuda' and get_compiling_cuda_version() == 'not available':
    sys.exit('mmcv has CPU ops only')
device = 'cuda' if wanted == 'cuda' and gpu else 'cpu'
boxes = torch.tensor([[0., 0., 9., 9.], [0., 0., 9., 8.], [20., 20., 29., 29.]], device=device)
kept = nms(boxes, torch.tensor([.9, .8, .7], device=device), .5)[1].tolist()
if kept != [0, 2]:
    sys.exit(f'mmcv.ops.nms kept boxes {kept} instead of [0, 2]')
PYTHON
}

# pip knows a kept build by mmcv's release and Python's alone: one for another torch may load, and compute anything.
# So each torch has a cache of its own.
own_cache() {
    local folder
    folder=$(pip cache dir 2>/dev/null) || return 0 # the user has switched the cache off
    [[ -z $folder ]] || printf '%s/mmkd/%s-%s' "$folder" "$OPS" "$(tr -dc '[:alnum:].+-' <"$STATE/torch-constraint.txt")"
}

build_mmcv() {
    local kept=$STATE/wheels cache
    cache=$(own_cache)
    local flags=(MMCV_WITH_OPS=1 "MAX_JOBS=${MAX_JOBS:-$(compiler_jobs)}")
    # these replace the interpreter's own flags, -O2 included: without it RoIAlign takes 2.4 times as long
    flags+=("CFLAGS=-O2 -g0 -w ${CFLAGS:-}" "CXXFLAGS=-O2 -g0 -w ${CXXFLAGS:-}" "FORCE_CUDA=$([[ $OPS == cuda ]] && echo 1 || echo 0)")
    rm -rf "$kept"
    env "${flags[@]}" "$VENV/bin/python" -m pip wheel --no-build-isolation --no-deps \
        ${cache:+--cache-dir "$cache"} --wheel-dir "$kept" "$@" -r "$PARTS/mmcv.txt" || return
    pip uninstall --yes "$MMCV" || return # a file of the same release would not be installed over it
    pip install -c "$PARTS/constraints.txt" -c "$STATE/torch-constraint.txt" "$kept"/*.whl || return
    cp "$STATE/torch-constraint.txt" "$STATE/mmcv-torch.txt"
}

mmcv_ready() {
    [[ ! -f $STATE/mmcv-torch.txt ]] || cmp -s "$STATE/torch-constraint.txt" "$STATE/mmcv-torch.txt" || return
    mmcv_works >>"$LOG" 2>&1
}

install_mmcv() {
    local estimate='10 min on two cores, seconds where pip kept an earlier build'
    [[ $OPS == cuda ]] && estimate='30 min on eight cores'
    check_compiler
    run_step "mmcv with compiled $OPS ops" "$estimate" build_mmcv
    mmcv_works >>"$LOG" 2>&1 && return
    say "   its ops do not work (pip may have kept a build without them): built anew"
    run_step "mmcv with compiled $OPS ops, without pip's cache" '10 min on two cores' \
        build_mmcv --no-cache-dir --no-binary "$MMCV"
    mmcv_works >>"$LOG" 2>&1 || {
        tail -n 15 "$LOG" >&2
        fail "mmcv was built, but its compiled ops do not work (see $LOG)" \
            "look for the first error of the compiler there; a fresh start is: rm -rf $VENV"
    }
}

# opencv-python needs libGL, which servers lack; the headless build is the same without windows.
mend_opencv() {
    (cd / && "$VENV/bin/python" -c 'import cv2') && return
    local version
    version=$(pip show opencv-python | sed -n 's/^Version: //p')
    install --force-reinstall --no-deps "opencv-python-headless==$version" || return
    (cd / && "$VENV/bin/python" -c 'import cv2')
}

install_rest() {
    install -r "$PARTS/openmmlab.txt" -r "$ROOT/requirements/runtime.txt" &&
        mend_opencv &&
        install --no-build-isolation --no-deps -e "$ROOT"
}

# ---- all of it ------------------------------------------------------------------------------------------------------

fingerprint() {
    {
        cat "$ROOT"/requirements/*.txt "$ROOT"/requirements/original/*.txt "$ROOT/setup.py" "$ROOT/tools/setup_env.sh"
        "$VENV/bin/python" -c 'import sys; print(sys.version)'
        printf '%s|%s|%s|%s' "$ROOT" "${TORCH:-}" "$(has_gpu && echo gpu)${FORCE_CUDA:-}" "$(command -v nvcc || true)${CUDA_HOME:-}"
    } 2>/dev/null | sha256sum | cut -d' ' -f1
}

is_stamped() {
    local role=$1
    [[ -x $VENV/bin/python && -f $STATE/stamp-$role && $(cat "$STATE/stamp-$role") == "$(fingerprint)" ]]
}

already_done() {
    [[ -z ${PYTHON:-} || "$(python_version "$PYTHON")" == "$(python_version "$VENV/bin/python")" ]] &&
        { is_stamped "$ROLE" || { [[ $ROLE == run ]] && is_stamped tests; }; }
}

take_lock() {
    command -v flock >/dev/null || return 0
    exec 9>"$STATE/lock"
    flock -n 9 && return
    say "another set-up of $VENV is running: waiting for it"
    flock 9
}

set_up() {
    local start=$SECONDS
    [[ $STACK == forks || $STACK == original ]] || fail "MMKD_STACK must be 'forks' or 'original', not '$STACK'"
    [[ -f $ROOT/setup.py ]] || fail "$ROOT is no checkout of mmkd: there is nothing to set up"
    choose_python
    check_python_parts
    say "environment $VENV with $(command -v "$PYTHON") (Python $(python_version "$PYTHON")); log: $LOG"
    [[ -f $STATE/torch-constraint.txt ]] || check_disk "${MMKD_NEED_MB:-$(wants_cuda && echo 12000 || echo 4000)}"
    { [[ -x $VENV/bin/python ]] && (cd / && "$VENV/bin/python" -c 'import mmcv.ops') 2>/dev/null; } || check_compiler
    make_venv
    mkdir -p "$STATE"
    take_lock
    already_done && return
    date >>"$LOG"
    run_step 'pip, setuptools, wheel, ninja' '20 s' \
        pip install -U pip wheel ninja -c "$PARTS/constraints.txt" setuptools
    torch_ready || run_step "$(torch_asked)" '1 min, and more where the network is slow' install_torch
    choose_ops
    run_step 'numpy' '10 s' install numpy
    if mmcv_ready; then say "mmcv with compiled $OPS ops is there"; else install_mmcv; fi
    run_step 'MMEngine, MMDetection, MMRazor, mmkd (editable)' '1 min' install_rest
    [[ $ROLE == tests ]] && run_step 'what the tests need' '30 s' install -r "$ROOT/requirements/tests.txt"
    mmcv_works >>"$LOG" 2>&1 || fail "mmcv's ops stopped working during the set-up; see $LOG"
    fingerprint >"$STATE/stamp-$ROLE"
    say "ready in $((SECONDS - start)) s. By hand: source $VENV/bin/activate"
}

parse_arguments "$@"
if already_done; then
    say "environment $VENV is up to date"
else
    set_up
fi
