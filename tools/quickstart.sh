#!/usr/bin/env bash
# Sets the environment up (tools/setup_env.sh: minutes the first time, then seconds), then trains a teacher, a plain
# student and a distilled student, and shows a table and pictures.
#
#   tools/quickstart.sh                      on a small set of pictures that it makes: some six minutes on two idle cores
#   tools/quickstart.sh --data PATH --format coco|kitti ...
#   tools/quickstart.sh --help               all options
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
# shellcheck source=tools/_venv.sh
source "$ROOT/tools/_venv.sh"
if [[ " $* " =~ ' --help '|' -h ' && ! -x $VENV/bin/python ]]; then
    sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
    echo 'All options are shown once tools/setup_env.sh has set the environment up.'
    exit 0
fi
"$ROOT/tools/setup_env.sh"
unset PYTHONPATH PYTHONHOME
export PYTHONNOUSERSITE=1
exec "$VENV/bin/python" -m mmkd.testing.quickstart "$@"
