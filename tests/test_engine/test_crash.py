"""Checkpoints and crashes: a file is whole or not there, and a killed run ends as the uninterrupted one."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mmengine.fileio import LocalBackend

from mmkd import whole_files
from mmkd.compat import UnsafeCheckpointError, load_checkpoint_file
from mmkd.engine.launch import prepare_training, train
from mmkd.testing.kill_and_resume import compare, differences
from mmkd.testing.toy_run import ToyRun, make_toy_run
from mmkd.whole_files import CheckpointWriteError, LateRemoval, last_whole_checkpoint, removing_late, write_whole

ROOT = Path(__file__).resolve().parents[2]
full_disk = pytest.mark.skipif(not Path('/dev/full').exists(), reason='the system has no /dev/full')


@pytest.fixture(scope='module')
def toy(tmp_path_factory: pytest.TempPathFactory) -> ToyRun:
    return make_toy_run(tmp_path_factory.mktemp('toy'), epochs=2)


def run(toy: ToyRun, folder: Path, resume: str | None = None, **options: object) -> None:
    cfg = toy.load(**options)
    cfg.train_cfg.val_interval = 99
    train(prepare_training(cfg, config_name='toy', work_dir=str(folder), resume=resume))


@pytest.mark.slow
def test_three_kills_end_with_the_same_bits(tmp_path: Path) -> None:
    command = [sys.executable, '-W', 'ignore', '-m', 'mmkd.testing.kill_and_resume']
    command += ['--kills', '3', '--epochs', '3', '--work-dir', str(tmp_path / 'kills')]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ, PYTHONPATH=str(ROOT)))
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'kill  3' in done.stdout
    assert 'random state: equal' in done.stdout


def test_differences_are_seen_to_the_last_bit() -> None:
    one = dict(a=[torch.tensor([1.0, 2.0])], b=3)
    other = dict(a=[torch.nextafter(one['a'][0], torch.tensor(9.0))], b=3, c=None)
    assert differences(one, dict(one)) == []
    assert differences(one, other) == ['.a[0]']
    assert differences(one, dict(a=[], b=4)) == ['.a', '.b']


def test_a_file_is_written_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    (tmp_path / '.old.pth.part').write_bytes(b'of a killed run')
    os.utime(tmp_path / '.old.pth.part', (0, 0))
    (tmp_path / '.b.pth.part').write_bytes(b'another process is writing')
    write_whole(b'new', tmp_path / 'sub' / '..' / 'a.pth')
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ['.b.pth.part', 'a.pth']
    assert (tmp_path / 'a.pth').read_bytes() == b'new'


def test_mmengine_writes_its_checkpoints_this_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / 'a.pth').write_bytes(b'old')

    def fail(descriptor: int) -> None:
        raise OSError(5, 'Input/output error')

    monkeypatch.setattr(whole_files.os, 'fsync', fail)
    with pytest.raises(CheckpointWriteError, match=r'a.pth could not be written: Input/output error.*intact: a.pth'):
        LocalBackend().put(b'new', str(tmp_path / 'a.pth'))
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [('a.pth', b'old')]


def test_ctrl_c_half_way_leaves_the_old_file_and_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / 'a.pth').write_bytes(b'old')

    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(whole_files.os, 'fsync', interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_whole(b'new', tmp_path / 'a.pth')
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [('a.pth', b'old')]


def test_a_kill_half_way_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / 'a.pth').write_bytes(b'old')
    pid = os.fork()
    if pid == 0:
        whole_files.os.fsync = lambda descriptor: (
            os.ftruncate(descriptor, 1),
            os.kill(os.getpid(), signal.SIGKILL),
        )
        write_whole(b'new', tmp_path / 'a.pth')
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert (tmp_path / 'a.pth').read_bytes() == b'old'


@full_disk
def test_a_full_disk_is_an_error_and_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / 'a.pth').write_bytes(b'old')
    (tmp_path / '.a.pth.part').symlink_to('/dev/full')
    with pytest.raises(CheckpointWriteError, match='No space left on device'):
        write_whole(b'new', tmp_path / 'a.pth')
    assert (tmp_path / 'a.pth').read_bytes() == b'old'


class Saver:
    """What `removing_late` wraps: removes the old file, then writes the new one (or cannot)."""

    def __init__(self, folder: Path, fails: bool) -> None:
        self.file_backend, self.folder, self.fails = LocalBackend(), folder, fails

    def save(self, name: str) -> None:
        self.file_backend.remove(str(self.folder / 'old.pth'))
        assert (self.folder / 'old.pth').exists(), 'the old file must outlive the writing'
        if self.fails:
            raise OSError('disk full')
        (self.folder / 'new.pth').write_bytes(b'new')


@pytest.mark.parametrize(('fails', 'left'), [(False, ['new.pth']), (True, ['old.pth'])])
def test_the_old_checkpoint_goes_when_the_new_one_is_there(fails: bool, left: list[str], tmp_path: Path) -> None:
    (tmp_path / 'old.pth').write_bytes(b'old')
    saver = Saver(tmp_path, fails)
    try:
        removing_late(Saver.save)(saver, 'x')
    except OSError:
        assert fails
    assert [p.name for p in tmp_path.iterdir()] == left
    assert isinstance(saver.file_backend, LocalBackend)


def test_a_new_file_of_the_same_name_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / 'a.pth').write_bytes(b'old')
    late = LateRemoval(LocalBackend())
    late.remove(str(tmp_path / 'a.pth'))
    write_whole(b'new', tmp_path / 'a.pth')
    late.finish()
    assert (tmp_path / 'a.pth').read_bytes() == b'new'


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    """Epochs 1, 2 and 10 (which sorts before 2 by name); 10 is the last one."""
    for epoch in (1, 2, 10):
        torch.save(dict(epoch=epoch, values=torch.zeros(5000)), tmp_path / f'epoch_{epoch}.pth')
    (tmp_path / 'last_checkpoint').write_text('/moved/away/epoch_10.pth')
    return tmp_path


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:3000])


def found(folder: Path) -> str:
    return Path(last_whole_checkpoint(folder, load_checkpoint_file)).name


def test_resumes_from_the_last_checkpoint_also_in_a_folder_that_was_moved(checkpoints: Path) -> None:
    assert found(checkpoints) == 'epoch_10.pth'


def test_a_truncated_last_checkpoint_is_passed_over(checkpoints: Path) -> None:
    cut(checkpoints / 'epoch_10.pth')
    assert found(checkpoints) == 'epoch_2.pth'
    cut(checkpoints / 'epoch_2.pth')
    assert found(checkpoints) == 'epoch_1.pth'


@pytest.mark.parametrize('content', ['', 'epoch_77.pth', None])
def test_a_broken_pointer_is_no_hindrance(content: str | None, checkpoints: Path) -> None:
    (checkpoints / 'last_checkpoint').unlink()
    if content is not None:
        (checkpoints / 'last_checkpoint').write_text(content)
    assert found(checkpoints) == 'epoch_10.pth'


def test_no_checkpoint_yet_means_a_start_from_the_beginning(tmp_path: Path) -> None:
    assert last_whole_checkpoint(tmp_path, load_checkpoint_file) is None


def test_checkpoints_in_another_folder_are_found_by_the_pointer(checkpoints: Path, tmp_path: Path) -> None:
    """As `CheckpointHook(out_dir=...)` leaves them: the pointer is in the work directory."""
    work_dir, elsewhere = tmp_path / 'run', tmp_path / 'big disk'
    work_dir.mkdir()
    elsewhere.mkdir()
    for path in checkpoints.glob('epoch_*.pth'):
        path.rename(elsewhere / path.name)
    (work_dir / 'last_checkpoint').write_text(str(elsewhere / 'epoch_10.pth'))
    assert last_whole_checkpoint(work_dir, load_checkpoint_file) == str(elsewhere / 'epoch_10.pth')
    cut(elsewhere / 'epoch_10.pth')
    assert last_whole_checkpoint(work_dir, load_checkpoint_file) == str(elsewhere / 'epoch_2.pth')
    shutil.rmtree(elsewhere)
    with pytest.raises(FileNotFoundError, match='names .*big disk/epoch_10.pth, which is not there'):
        last_whole_checkpoint(work_dir, load_checkpoint_file)


def test_only_damaged_checkpoints_are_an_error(checkpoints: Path) -> None:
    for path in checkpoints.glob('*.pth'):
        cut(path)
    with pytest.raises(RuntimeError, match=r'No checkpoint in .* is whole.*epoch_10.pth is cut off'):
        last_whole_checkpoint(checkpoints, load_checkpoint_file)


def test_training_passes_over_a_truncated_checkpoint_with_a_message(
    toy: ToyRun, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run(toy, tmp_path / 'whole')
    run(toy, tmp_path / 'cut')
    cut(tmp_path / 'cut/epoch_2.pth')
    capfd.readouterr()
    run(toy, tmp_path / 'cut', resume='auto')
    said = ''.join(capfd.readouterr())
    assert 'epoch_2.pth is cut off' in said and 'The one before it is tried' in said
    assert 'resumed epoch: 1' in said
    assert compare(tmp_path / 'whole/epoch_2.pth', tmp_path / 'cut/epoch_2.pth') == []


@pytest.mark.parametrize('keep', [1, 3])
def test_a_full_disk_in_training_leaves_the_checkpoint_before_intact(
    keep: int, toy: ToyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, sync = tmp_path / 'run', os.fsync

    def full(descriptor: int) -> None:
        if 'epoch_2' in os.readlink(f'/proc/self/fd/{descriptor}'):
            raise OSError(28, 'No space left on device')
        sync(descriptor)

    monkeypatch.setattr(whole_files.os, 'fsync', full)
    with pytest.raises(CheckpointWriteError, match=r'epoch_2.pth could not be written: No space left.*: epoch_1.pth'):
        run(toy, folder, default_hooks__checkpoint__max_keep_ckpts=keep)
    assert load_checkpoint_file(str(folder / 'epoch_1.pth'))['meta']['epoch'] == 1
    assert (folder / 'last_checkpoint').read_text().endswith('epoch_1.pth')
    assert not list(folder.glob('.*.part'))


def test_disk_use_is_bounded(toy: ToyRun, tmp_path: Path) -> None:
    run(toy, tmp_path / 'run', default_hooks__checkpoint__max_keep_ckpts=1)
    assert [p.name for p in (tmp_path / 'run').glob('*.pth*')] == ['epoch_2.pth']
    assert not list((tmp_path / 'run').glob('.*.part'))


def test_an_unsafe_last_checkpoint_is_not_executed(checkpoints: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Callable, tuple]:
            return os.system, (f'touch {checkpoints}/executed',)

    torch.save(dict(a=Bomb()), checkpoints / 'epoch_10.pth')
    assert found(checkpoints) == 'epoch_2.pth'
    with pytest.raises(UnsafeCheckpointError, match='posix.system'):
        load_checkpoint_file(str(checkpoints / 'epoch_10.pth'))
    assert not (checkpoints / 'executed').exists()
