#!/usr/bin/env bash
# Sets the environment up (tools/setup_env.sh --tests: minutes the first time, then seconds) and runs the tests.
#
#   tools/run_tests.sh                       all of them, two processes
#   tools/run_tests.sh -m 'not slow'         any arguments of pytest; paths are relative to the project
#
# MMKD_DATA=... folder with the real data sets (default: ../shared/data beside the project; tests that need a data set
# that is not there are skipped).
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
"$ROOT/tools/setup_env.sh" --tests
unset PYTHONPATH PYTHONHOME
# shellcheck source=tools/_venv.sh
source "$ROOT/tools/_venv.sh"
export PYTHONNOUSERSITE=1 OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
[[ -z ${MMKD_DATA:-} ]] || MMKD_DATA=$(cd "$MMKD_DATA" && pwd)
start=$SECONDS code=0
(cd "$ROOT" && "$VENV/bin/python" -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 25 --durations-min 5 "$@") || code=$?
printf '[tests] %d min %d s\n' $(((SECONDS - start) / 60)) $(((SECONDS - start) % 60))
case $code in
    0) echo '[tests] all passed' ;;
    5) echo '[tests] ERROR: these arguments select no test' >&2 ;;
    *) echo "[tests] FAILED (exit code $code)" >&2 ;;
esac
exit "$code"
