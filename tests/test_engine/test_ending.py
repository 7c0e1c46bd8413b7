"""How a training ends before its time: Ctrl-C leaves no process and no half file, a rank that dies ends the others.

Each case is the whole command in processes of its own, without a GPU.
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmkd.compat import load_checkpoint_file
from mmkd.testing.toy_run import make_toy_run

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 300  # seconds after which a process counts as hanging; nothing here is timed
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not Path('/proc').is_dir(), reason='looks for processes in /proc')]


@pytest.fixture(scope='module')
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that would take hours, with workers that live through epochs; saves after every epoch of 2 steps."""
    toy = make_toy_run(tmp_path_factory.mktemp('toy'), epochs=9999)
    cfg = toy.load()
    cfg.train_cfg.val_interval = 9999
    cfg.train_dataloader.update(num_workers=2, persistent_workers=True)
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', interval=1, max_keep_ckpts=1)
    cfg.custom_imports = dict(imports=['dying_rank'], allow_failed_imports=False)
    cfg.custom_hooks = [dict(type='DyingRankHook')]
    cfg.dump(str(toy.root / 'long.py'))
    return toy.root / 'long.py'


def processes(word: str) -> list[int]:
    """Processes with a word in their command: the launcher, its ranks, and their workers, which are forks."""
    found = []
    for path in Path('/proc').glob('[0-9]*'):
        try:
            if word.encode() in (path / 'cmdline').read_bytes():
                found.append(int(path.name))
        except OSError:  # it has just ended
            continue
    return found


class Training:
    """A command in a session of its own, whose output goes to a file."""

    def __init__(self, folder: Path, *command: object, **variables: str) -> None:
        environment = os.environ | variables
        environment |= dict(PYTHONPATH=f'{ROOT}:{ROOT / "tests"}', OMP_NUM_THREADS='1', PYTHON=sys.executable)
        self.work_dir, self.log = folder / 'run', folder / 'output.log'
        with open(self.log, 'w') as file:
            self.process = subprocess.Popen(
                [*map(str, command), '--work-dir', str(self.work_dir)],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment | dict(PYTHONWARNINGS='ignore'),
                start_new_session=True,
                # a test that a shell has put into the background would hand on that Ctrl-C is ignored
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    def until(self, file: str, limit: float = LIMIT) -> None:
        """Wait for a file of the work directory."""
        end = time.monotonic() + limit
        while not list(self.work_dir.glob(file)):
            assert self.process.poll() is None and time.monotonic() < end, self.log.read_text()[-3000:]
            time.sleep(0.05)

    def end(self, limit: float = LIMIT) -> tuple[int, str]:
        """Exit code and output; no process may be left."""
        try:
            code = self.process.wait(timeout=limit)
            stop = time.monotonic() + limit
            while self.alive() and time.monotonic() < stop:
                time.sleep(0.05)
            assert self.alive() == []
        finally:
            for process in self.alive():
                os.kill(process, signal.SIGKILL)
        return code, self.log.read_text()

    def alive(self) -> list[int]:
        """Processes of this training."""
        return processes(str(self.work_dir))

    def assert_files_are_whole(self, killed: bool = False) -> None:
        """Every checkpoint can be read, and there is no part of another.

        A process that was killed while it wrote leaves the hidden part file, which the next run removes.
        """
        files = list(self.work_dir.glob('*.pth'))
        parts = [path for path in self.work_dir.rglob('*.part') if not (killed and path.name.startswith('.epoch_'))]
        assert files and not parts
        for file in files:
            assert 'state_dict' in load_checkpoint_file(str(file))


def test_ctrl_c_ends_a_training_with_its_workers(config: Path, tmp_path: Path) -> None:
    training = Training(tmp_path, sys.executable, ROOT / 'tools/train.py', config)
    training.until('epoch_*.pth')
    workers = len(training.alive()) - 1
    os.killpg(training.process.pid, signal.SIGINT)  # as a terminal does: to every process
    code, said = training.end()
    assert workers >= 2
    assert code == 130
    assert '--resume continues' in said and 'Traceback' not in said
    training.assert_files_are_whole()


def test_ctrl_c_ends_all_processes(config: Path, tmp_path: Path) -> None:
    training = Training(tmp_path, ROOT / 'tools/dist_train.sh', config, 2)
    training.until('epoch_*.pth')
    assert len(training.alive()) >= 7, 'the launcher, two ranks, two workers each'
    os.killpg(training.process.pid, signal.SIGINT)
    code, said = training.end()
    assert code != 0
    assert said.count('--resume continues') == 1
    training.assert_files_are_whole()


def test_a_rank_that_dies_ends_the_others(config: Path, tmp_path: Path) -> None:
    """Killed from outside, as by the system when memory is short, at the first step of the third epoch."""
    training = Training(tmp_path, ROOT / 'tools/dist_train.sh', config, 2, DYING_RANK='1')
    training.until('died')
    code, said = training.end()
    assert code != 0
    assert re.search(r'rank\s*: 1\b', said) and 'Signal 9 (SIGKILL)' in said
    training.assert_files_are_whole(killed=True)  # rank 0 too, perhaps while it saved
    # not one more epoch alone
    assert {path.name for path in training.work_dir.glob('epoch_*.pth')} <= {'epoch_1.pth', 'epoch_2.pth'}
