"""A made machine for the tests of the shell scripts: programs that only note what they are asked to do."""

import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

FAKE_PYTHON = r"""#!/usr/bin/env bash
note() { printf '%s\n' "$*" >>"$FAKE_LOG"; }
case "$1 ${2:-}" in
    *'sys.version_info'*) echo "${FAKE_VERSION:-3.11}" ;;
    *'print(sys.version)'*) echo "${FAKE_VERSION:-3.11}" ;;
    '-m venv')
        note venv
        mkdir -p "${@: -1}/bin"
        cp "$FAKE_SOURCE" "${@: -1}/bin/python"
        ;;
    '-m pip')
        [[ $3 == cache ]] && { echo "${FAKE_CACHE:-}"; exit; }
        note "pip ${*:3} OPS=${MMCV_WITH_OPS:-} CUDA=${FORCE_CUDA:-} JOBS=${MAX_JOBS:-}"
        [[ -n ${FAKE_NO_CPU_FILE:-} && $* == *'+cpu'* ]] && exit 1
        if [[ -n ${FAKE_FAIL:-} && $* == *"$FAKE_FAIL"* ]]; then
            echo 'the reason why it failed'
            exit 3
        fi
        [[ $3 == wheel && $* == *mmcv.txt* ]] && echo x >>"$FAKE_LOG.mmcv"
        exit 0
        ;;
    '- cpu' | '- cuda') (($(wc -l <"$FAKE_LOG.mmcv" 2>/dev/null || echo 0) >= ${FAKE_GOOD_BUILD:-1})) ;;
    *CUDA_HOME*) echo "${FAKE_CUDA_HOME:-}" ;;
    *torch.version.cuda*) echo "${FAKE_TORCH_CUDA:-}" ;;
    *'"torch=="'*) echo "torch==${FAKE_TORCH:-2.13.0+cpu}" ;;
    *urllib*) exit 1 ;;
    *'import mmcv.ops'*) [[ -f $FAKE_LOG.mmcv ]] ;;
    '-m pytest' | '-m mmkd.testing.quickstart' | '-m torch.distributed.run')
        note "$*"
        note "cwd=$PWD threads=${OMP_NUM_THREADS:-} path=${PYTHONPATH:-}"
        exit "${FAKE_EXIT:-0}"
        ;;
    *socket*) echo 12345 ;;
    *) exit 0 ;;
esac
"""


def write_program(path: Path, text: str) -> Path:
    """An executable file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


class Machine:
    """A copy of the scripts, a made interpreter and the environment variables that go with them."""

    def __init__(self, folder: Path) -> None:
        self.project = folder / 'pro ject'  # a space, as users have them
        shutil.copytree(ROOT / 'tools', self.project / 'tools', ignore=shutil.ignore_patterns('*.py', '__pycache__'))
        shutil.copytree(ROOT / 'requirements', self.project / 'requirements')
        shutil.copytree(ROOT / '.ci', self.project / '.ci')
        (self.project / 'setup.py').write_text('')
        self.elsewhere = folder / 'elsewhere'
        self.elsewhere.mkdir()
        self.log = folder / 'calls.log'
        self.programs = folder / 'bin'
        python = write_program(self.programs / 'python3', FAKE_PYTHON)
        keep = ('PATH', 'LANG')
        self.env = {name: os.environ[name] for name in keep if name in os.environ}
        self.env.update(FAKE_LOG=str(self.log), FAKE_SOURCE=str(python), HOME=str(folder), CXX='true')
        self.env['MMKD_NEED_MB'] = '1'  # nothing is installed on the real disk
        self.env['PATH'] = f'{self.programs}:{self.env["PATH"]}'

    def run(self, script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
        """Runs a script from another folder; its two output streams come as one text."""
        return subprocess.run(
            [str(self.project / script), *arguments],
            env=self.env | variables,
            cwd=self.elsewhere,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )

    def calls(self) -> list[str]:
        """What the made interpreter was asked since the last call of this."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return lines

    def add_gpu(self, toolkit: str = '13.0') -> None:
        """A GPU, and a CUDA toolkit of that version."""
        write_program(self.programs / 'nvidia-smi', '#!/bin/sh\necho "GPU 0: made"\n')
        nvcc = write_program(
            self.programs.parent / 'cuda' / 'bin' / 'nvcc',
            f'#!/bin/sh\necho "Cuda compilation tools, release {toolkit}, V"',
        )
        self.env['FAKE_CUDA_HOME'] = str(nvcc.parents[1])
