# shellcheck shell=bash
# Where tools/setup_env.sh makes the environment; sourced, with ROOT set. Sets VENV.
# shellcheck disable=SC2034  # read by those who source it
VENV=${MMKD_VENV:-$ROOT/.venv$([[ ${MMKD_STACK:-forks} != original ]] || echo -original)}
[[ $VENV == /* ]] || VENV=$PWD/$VENV
