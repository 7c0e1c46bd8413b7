"""The work directory of a training: whether it can be one, and that it is one training's alone."""

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

from mmengine.config import Config
from mmengine.dist import is_main_process

from mmkd.engine.command_line import check_output
from mmkd.process_ranks import global_rank

# Files of a run in its work directory that another run would write over or remove.
CHECKPOINTS = ('last_checkpoint', 'epoch_*.pth', 'iter_*.pth', 'best_*.pth')
# Held by the training; it stays, for a file that goes and comes could be held twice.
LOCK = '.training.lock'
# Seconds for which a training waits for one that is just ending, such as one whose launcher was killed.
PATIENCE = 10.0


class WorkDirError(ValueError):
    """A work directory that belongs to another run."""


def check_work_dir(cfg: Config) -> Iterator[str]:
    """A work directory that cannot be made, or holds another run or somebody's config, which would be overwritten."""
    if not is_main_process():
        return
    folder = Path(cfg.work_dir)
    try:
        check_output('--work-dir', folder, folder=True)
    except (ValueError, PermissionError) as error:
        yield str(error)
        return
    if _is_first(cfg) and _is_in_use(folder):
        yield _in_use(folder)
    elif _holds_another_run(cfg):
        yield _another_run(folder)
    copy = folder / Path(cfg.filename or '').name
    if _inherits(copy):
        yield (
            f'The work directory {folder} holds {copy.name}, which someone wrote (it has a _base_): the copy of the '
            'whole configuration that a run leaves under this name would replace it. Choose another --work-dir.'
        )


def _inherits(file: Path) -> bool:
    """Whether a file is a configuration with `_base_`, which no copy that MMEngine writes has."""
    try:
        return file.is_file() and bool(Config._get_base_files(str(file)))
    except Exception:  # no configuration, or a broken one
        return False


@contextmanager
def alone_in_work_dir(cfg: Config) -> Iterator[None]:
    """Hold the work directory during a training; a process that has died holds nothing.

    In a run of several processes the first one holds it. Where the file system knows no locks, or the file cannot be
    written, the training goes on without.

    Args:
        cfg: with `work_dir`, which is made, and `launcher`.

    Raises:
        WorkDirError: another process holds it, or has trained in it since it was looked at.
    """
    folder = Path(cfg.work_dir)
    file = _open(folder) if _is_first(cfg) else None
    if file is None:
        yield
        return
    with file:
        os.register_at_fork(after_in_child=file.close)  # a loader's worker may outlive a training that was killed
        if not _lock(file, fcntl.LOCK_EX):
            raise WorkDirError(_in_use(folder))
        if _holds_another_run(cfg):
            raise WorkDirError(_another_run(folder))
        with suppress(OSError):  # who holds it is only for the message
            file.truncate(0)
            file.write(f'process {os.getpid()} of {socket.gethostname()}'.encode())
        yield


def _is_first(cfg: Config) -> bool:
    """Whether this is the process that writes the checkpoints, also before there is a process group."""
    return is_main_process() and (cfg.get('launcher', 'none') == 'none' or global_rank() == 0)


def _open(folder: Path) -> FileIO | None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return FileIO(folder / LOCK, 'a')
    except OSError:
        return None


def _lock(file: FileIO, kind: int) -> bool:
    """Whether the lock could be had within `PATIENCE`; a file system without locks gives it to everyone."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= end:
                return False
            time.sleep(0.1)
            continue
        except OSError:
            pass
        return True


def _is_in_use(folder: Path) -> bool:
    try:
        file = FileIO(folder / LOCK)
    except OSError:
        return False
    with file:
        return not _lock(file, fcntl.LOCK_SH)


def _in_use(folder: Path) -> str:
    holder = ''
    with suppress(OSError):
        holder = (folder / LOCK).read_text(errors='replace')
    return (
        f'Another training{f" ({holder})" if holder else ""} is working in {folder}. Wait for it, end it, or choose '
        'another --work-dir.'
    )


def _holds_another_run(cfg: Config) -> bool:
    folder = Path(cfg.work_dir)
    return not cfg.get('resume') and any(path.is_file() for name in CHECKPOINTS for path in folder.glob(name))


def _another_run(folder: Path) -> str:
    return f'The work directory {folder} already holds a run. Resume it with --resume, or choose another --work-dir.'
