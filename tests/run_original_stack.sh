#!/usr/bin/env bash
# Runs the tests on the original packages (mmcv 2.1.0, mmengine 0.10.7, mmdet 3.3.0) instead of the maintained forks, in
# an environment of their own. Not part of CI: compiling mmcv takes minutes.
#
#   tests/run_original_stack.sh                       all tests
#   tests/run_original_stack.sh tests/test_engine     any arguments of pytest
#
# PYTHON=, TORCH=, MMKD_VENV=, MAX_JOBS=, MMKD_DATA= as in tools/setup_env.sh and tools/run_tests.sh.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
MMKD_STACK=original exec "$ROOT/tools/run_tests.sh" "$@"
