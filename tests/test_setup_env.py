"""`tools/setup_env.sh`: what it runs, in which order, and what it refuses.

It is tried on a made machine: a `python` that only notes what it is asked to do, and, where wanted, an `nvidia-smi`
and an `nvcc`. The true set-up takes minutes and is what `.ci/run` itself does.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from made_machine import FAKE_PYTHON, Machine, write_program


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def positions(calls: list[str], *texts: str) -> list[int]:
    """Where each text occurs first among the calls."""
    return [next(index for index, call in enumerate(calls) if text in call) for text in texts]


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
        assert '--no-binary onedl-mmcv' in second

    def test_keeps_a_build_of_mmcv_for_each_torch_apart(self, machine: Machine) -> None:
        """pip would take the one for another torch: its release and Python's are the same."""
        machine.run('tools/setup_env.sh', FAKE_CACHE='/kept')
        (build,) = [call for call in machine.calls() if 'mmcv.txt' in call]
        assert '--cache-dir /kept/mmkd/cpu-torch2.13.0+cpu ' in build
        machine.run('tools/setup_env.sh', FAKE_CACHE='/kept', TORCH='torch==2.9.1', FAKE_TORCH='2.9.1')
        calls = machine.calls()
        (build,) = [call for call in calls if 'mmcv.txt' in call]  # also where that of the first torch still loads
        assert '--cache-dir /kept/mmkd/cpu-torch2.9.1 ' in build
        order = positions(
            calls, 'torch==2.9.1', 'wheel --no-build', 'uninstall --yes onedl-mmcv', 'wheels/', 'openmmlab'
        )
        assert order == sorted(order)

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

    def test_the_held_torch_has_the_version_that_pip_knows(self, tmp_path: Path) -> None:
        """PyPI's CUDA build says 2.13.0+cu130 of itself; to pip, which holds it, it is 2.13.0."""
        (tmp_path / 'torch').mkdir()
        (tmp_path / 'torch/__init__.py').write_text("__version__ = '2.13.0+cu130'")
        (tmp_path / 'torch-2.13.0.dist-info').mkdir()
        (tmp_path / 'torch-2.13.0.dist-info/METADATA').write_text(
            'Metadata-Version: 2.1\nName: torch\nVersion: 2.13.0\n'
        )
        (code,) = re.findall(
            r"-c '([^']*\"torch==\"[^']*)'", (Path(__file__).parents[1] / 'tools/setup_env.sh').read_text()
        )
        environment = os.environ | dict(PYTHONPATH=str(tmp_path))
        said = subprocess.run([sys.executable, '-c', code], env=environment, capture_output=True, text=True, check=True)
        assert said.stdout == 'torch==2.13.0\n'

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

    @pytest.mark.parametrize(('torch_cuda', 'forced'), [('13.0', '1'), ('', '0')])
    def test_builds_cuda_ops_on_a_login_node_that_asks_for_them(
        self, machine: Machine, torch_cuda: str, forced: str
    ) -> None:
        machine.add_gpu()
        (machine.programs / 'nvidia-smi').unlink()
        done = machine.run('tools/setup_env.sh', FAKE_TORCH_CUDA=torch_cuda, FORCE_CUDA='1')
        assert done.returncode == 0, done.stdout
        assert 'no GPU, but FORCE_CUDA=1' in done.stdout
        calls = machine.calls()
        assert any(f'OPS=1 CUDA={forced}' in call for call in calls)
        assert not any('torch==' in call and '+cpu' in call for call in calls), 'a torch with CUDA is wanted'

    def test_warns_of_a_gpu_without_toolkit(self, machine: Machine) -> None:
        machine.add_gpu()
        done = machine.run('tools/setup_env.sh', FAKE_TORCH_CUDA='13.0', FAKE_CUDA_HOME='')
        assert 'NOT train on the GPU' in done.stdout
        assert any('OPS=1 CUDA=0' in call for call in machine.calls())

    @pytest.mark.parametrize(
        ('variables', 'said'),
        [
            (dict(FAKE_VERSION='3.14', PYTHON='python3'), 'is Python 3.14; mmkd needs 3.10 to 3.13'),
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

    def test_a_relative_folder_of_the_environment_is_that_of_the_caller(self, machine: Machine) -> None:
        done = machine.run('tools/setup_env.sh', MMKD_VENV='own/venv')
        assert done.returncode == 0, done.stdout
        assert (machine.elsewhere / 'own/venv/bin/python').exists()
        assert f'environment {machine.elsewhere}/own/venv' in done.stdout

    def test_says_when_no_fitting_python_is_there(self, machine: Machine) -> None:
        for name in ('python3.10', 'python3.11', 'python3.12', 'python3.13', 'python'):
            shutil.copy(machine.programs / 'python3', machine.programs / name)
        done = machine.run('tools/setup_env.sh', FAKE_VERSION='3.9')
        assert done.returncode != 0
        assert "no Python 3.10 to 3.13 was found (python3 is '3.9')" in done.stdout

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
            timeout=55,
            check=True,
        )


class TestOriginalStack:
    def test_installs_the_original_packages_into_an_environment_of_their_own(self, machine: Machine) -> None:
        done = machine.run('tools/setup_env.sh', MMKD_STACK='original')
        assert done.returncode == 0, done.stdout
        calls = machine.calls()
        for name in ('mmcv.txt', 'openmmlab.txt', 'constraints.txt'):
            used = [call for call in calls if name in call]
            assert used and all(f'requirements/original/{name}' in call for call in used)
        assert (machine.project / '.venv-original' / 'bin' / 'python').exists()
        assert not (machine.project / '.venv').exists()

    def test_is_what_its_test_script_sets_up(self, machine: Machine) -> None:
        shutil.copytree(Path(__file__).parent, machine.project / 'tests', ignore=lambda *_: ['__pycache__'])
        done = machine.run('tests/run_original_stack.sh', '-k', 'two words')
        assert done.returncode == 0, done.stdout
        calls = machine.calls()
        assert any('requirements/original/mmcv.txt' in call for call in calls)
        assert any(call.startswith('-m pytest -n 2 --dist loadfile ') and call.endswith('two words') for call in calls)
        assert (machine.project / '.venv-original').is_dir() and not (machine.project / '.venv').exists()

    def test_is_where_the_quick_start_runs(self, machine: Machine) -> None:
        done = machine.run('tools/quickstart.sh', '--seeds', '0', MMKD_STACK='original')
        assert done.returncode == 0, done.stdout
        assert '-m mmkd.testing.quickstart --seeds 0' in machine.calls()
        assert not (machine.project / '.venv').exists()

    def test_another_name_is_refused(self, machine: Machine) -> None:
        done = machine.run('tools/setup_env.sh', MMKD_STACK='orignal')
        assert done.returncode == 1
        assert "MMKD_STACK must be 'forks' or 'original', not 'orignal'" in done.stdout
