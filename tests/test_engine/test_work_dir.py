"""A work directory is one training's alone, and a test leaves there what the training wrote."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, MODELS

from mmkd.engine import work_dir
from mmkd.engine.launch import load_config, prepare_test
from mmkd.engine.preflight import PreflightError
from mmkd.engine.testing import TestOptions, test
from mmkd.engine.work_dir import LOCK, WorkDirError, alone_in_work_dir, check_work_dir
from mmkd.testing.toy_run import ToyRun, make_toy_run


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work_dir, 'PATIENCE', 0.0)


def of(folder: Path, **more: object) -> Config:
    return Config(dict(work_dir=str(folder), **more))


def said(cfg: Config) -> str:
    return '\n'.join(check_work_dir(cfg))


def test_a_second_training_in_a_work_dir_is_refused_from_the_first_moment(tmp_path: Path) -> None:
    cfg = of(tmp_path / 'run')
    with alone_in_work_dir(cfg):
        for second in (cfg, of(tmp_path / 'run', resume=True)):
            assert f'Another training (process {os.getpid()} of ' in said(second)
            with pytest.raises(WorkDirError, match='is working in'), alone_in_work_dir(second):
                pass
        assert said(of(tmp_path / 'other')) == ''
    assert said(cfg) == ''
    with alone_in_work_dir(cfg):
        pass


@HOOKS.register_module()
class StartsAnother(Hook):
    """Tries to train in the same work directory, before any checkpoint is there."""

    said = ''

    def before_train_iter(self, runner: object, batch_idx: int, data_batch: object = None) -> None:
        StartsAnother.said = said(of(Path(runner.work_dir)))


def test_a_training_holds_its_work_dir_until_its_end(distill_config, run, tmp_path: Path) -> None:
    cfg = distill_config(epochs=1)
    cfg.custom_hooks = [dict(type='StartsAnother')]
    run(cfg, tmp_path / 'run')
    assert 'is working in' in StartsAnother.said
    assert said(of(tmp_path / 'run', resume=True)) == ''
    with pytest.raises(PreflightError, match='already holds a run'):
        run(distill_config(epochs=1), tmp_path / 'run')


def test_a_run_that_was_finished_while_this_one_was_looked_at_is_left_alone(tmp_path: Path) -> None:
    assert said(of(tmp_path)) == ''
    (tmp_path / 'epoch_1.pth').touch()
    with pytest.raises(WorkDirError, match='already holds a run'), alone_in_work_dir(of(tmp_path)):
        pass
    with alone_in_work_dir(of(tmp_path, resume=True)):
        pass


HOLDER = """
import os, sys, time
from mmengine.config import Config
from mmkd.engine.work_dir import alone_in_work_dir
with alone_in_work_dir(Config(dict(work_dir=sys.argv[1]))):
    worker = os.fork()
    if not worker:
        time.sleep(100)
    print(worker, flush=True)
    time.sleep(100)
"""


def test_a_killed_training_holds_nothing_though_its_worker_lives(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, '-c', HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    worker = int(holder.stdout.readline())
    try:
        assert f'process {holder.pid} of' in said(of(tmp_path))
        holder.kill()
        holder.wait()
        os.kill(worker, 0)
        assert said(of(tmp_path)) == ''
        with alone_in_work_dir(of(tmp_path)):
            pass
    finally:
        holder.kill()
        os.kill(worker, signal.SIGKILL)
        holder.stdout.close()


def test_a_training_that_is_ending_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work_dir, 'PATIENCE', 10.0)
    first = alone_in_work_dir(of(tmp_path))
    first.__enter__()
    monkeypatch.setattr(time, 'sleep', lambda _: first.__exit__(None, None, None))
    assert said(of(tmp_path)) == ''


def test_the_other_ranks_ask_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with alone_in_work_dir(of(tmp_path)):
        monkeypatch.setenv('RANK', '1')
        other = of(tmp_path, launcher='pytorch')
        assert said(other) == ''
        with alone_in_work_dir(other):
            pass
        assert said(of(tmp_path)) != '', 'a variable that was left over makes no rank'


@pytest.mark.parametrize('code', [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_trains(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, 'flock', refuse)
    with alone_in_work_dir(of(tmp_path)):
        assert said(of(tmp_path)) == ''


def test_a_lock_that_cannot_be_written_does_not_end_a_training(tmp_path: Path) -> None:
    (tmp_path / LOCK).mkdir()
    with alone_in_work_dir(of(tmp_path)):
        assert said(of(tmp_path)) == ''


@pytest.mark.parametrize('resume', [False, True])
def test_a_work_dir_below_a_file_is_refused(resume: bool, tmp_path: Path) -> None:
    (tmp_path / 'file').touch()
    for folder in ('file', 'file/run', 'file/deep/run'):
        assert 'is a file, not a folder' in said(of(tmp_path / folder, resume=resume))
    assert said(of(tmp_path / 'a/new/one')) == ''


@pytest.mark.parametrize('resume', [False, True])
def test_a_config_that_someone_wrote_is_not_replaced_by_the_copy_of_the_run(resume: bool, tmp_path: Path) -> None:
    (tmp_path / 'base.py').write_text('model = dict(type="A")')
    (tmp_path / 'own.py').write_text("# by hand\n_base_ = ['base.py']\n")
    cfg = Config.fromfile(str(tmp_path / 'own.py'))
    cfg.merge_from_dict(dict(work_dir=str(tmp_path), resume=resume))
    assert 'holds own.py, which someone wrote' in said(cfg)
    cfg.work_dir = str(tmp_path / 'run')
    assert said(cfg) == ''
    (tmp_path / 'run').mkdir()
    cfg.dump(tmp_path / 'run' / 'own.py')  # as the Runner does
    assert said(cfg) == ''


@pytest.fixture(scope='module')
def distilled(tmp_path_factory: pytest.TempPathFactory) -> ToyRun:
    run = make_toy_run(tmp_path_factory.mktemp('distilled'), val=1)
    torch.save(dict(state_dict=MODELS.build(run.load().model.architecture).state_dict()), run.root / 's.pth')
    return run


@pytest.mark.parametrize('name', ['distilled.py', 'student.py'])
def test_a_test_leaves_the_configs_of_the_training(name: str, distilled: ToyRun, tmp_path: Path) -> None:
    """Also where the file in the work directory is the one that is given, and the teacher is scored beside it."""
    read = distilled.load()
    read.log_level = 'WARNING'
    read.model.architecture.test_cfg.score_thr = 0.0
    if name == 'student.py':
        read.model = read.model.architecture
    read.dump(str(tmp_path / name))
    before = (tmp_path / name).read_bytes()
    for given in (tmp_path / name, distilled.config if name == 'distilled.py' else tmp_path / name):
        read = load_config(str(given))
        work = dict(work_dir=str(tmp_path), config_name=str(given), launcher='none')
        compare = (f'other={distilled.root}/s.pth',)
        cfg = prepare_test(load_config(str(given)), str(distilled.root / 's.pth'), **work)
        test(cfg, TestOptions(compare=compare), read)
    assert (tmp_path / name).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [name]
    written = {path.name for path in tmp_path.glob('*/test_*.py')}
    names = ('distilled', 'other', 'teacher') if name == 'distilled.py' else ('student', 'other')
    assert written == {f'test_{one}.py' for one in names}
    assert all('architecture' not in Config.fromfile(path).model for path in tmp_path.glob('*/test_*.py'))


@pytest.mark.parametrize(
    ('options', 'work', 'match'),
    [
        (dict(out='file/found.pkl'), 'run', r'--out .*file/found\.pkl: .*file is a file, not a folder'),
        (dict(out='folder.pkl'), 'run', 'is a folder; name a file'),
        ({}, 'file/run', r'--work-dir .*file/run: .*file is a file, not a folder'),
    ],
)
def test_places_that_cannot_be_written_are_refused_before_a_test(
    options: dict, work: str, match: str, distilled: ToyRun, tmp_path: Path
) -> None:
    (tmp_path / 'file').touch()
    (tmp_path / 'folder.pkl').mkdir()
    options = {key: str(tmp_path / value) for key, value in options.items()}
    cfg = prepare_test(
        distilled.load(), str(tmp_path / 'no.pth'), work_dir=str(tmp_path / work), config_name='x', launcher='none'
    )
    with pytest.raises(ValueError, match=match):
        test(cfg, TestOptions(**options))
