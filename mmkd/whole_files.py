"""Checkpoint files that are whole or not there, whenever the process is killed, the disk is full or the network ends.

`mmkd.compat` puts these functions in the place of MMEngine's.
"""

import fcntl
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import mmengine
import torch
from mmengine.logging import print_log

STALE = 3600.0  # seconds after which a part file is of a process that was killed while it wrote


class CheckpointWriteError(OSError):
    """A file that could not be written; what was there before is still there."""

    user_mistake = True


def write_whole(data: bytes, path: str | Path) -> None:
    """Write a file under another name beside it and rename it when it is whole and on the disk.

    Raises:
        CheckpointWriteError: the disk is full or not writable; says what is intact.
    """
    path = Path(path)
    part = path.with_name(f'.{path.name}.part')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, 'wb') as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException as error:  # Ctrl-C too
        with suppress(OSError):  # its folder may be a file, and that is what the error tells
            part.unlink()
        if not isinstance(error, OSError):
            raise
        whole = ', '.join(p.name for p in sorted(path.parent.glob('*.pth'))) or 'none'
        raise CheckpointWriteError(
            f'{path} could not be written: {error.strerror or error}. Earlier checkpoints are intact: {whole}.'
        ) from error
    for stale in path.parent.glob('.*.pth.part'):  # of a run that was killed while it wrote; others may be writing
        with suppress(FileNotFoundError):
            if time.time() - stale.stat().st_mtime > STALE:
                stale.unlink()


@contextmanager
def folder_for(path: str | Path) -> Iterator[None]:
    """Make the folder of a file; on an error inside, the folders that were made for it go again.

    Args:
        path: of the file.
    """
    path = Path(path).absolute()
    made = [folder for folder in path.parents if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:  # Ctrl-C too
        for folder in made:
            with suppress(OSError):  # not there yet, or somebody else has put something in
                folder.rmdir()
        raise


def cached_download(url: str, folder: str | Path | None, progress: bool) -> Path:
    """Local path of a downloaded file; it has its name only when it is whole. One process downloads, others wait.

    Args:
        url: where it lies.
        folder: where to keep it; None for torch's own folder of checkpoints.
        progress: show a bar.

    Raises:
        FileNotFoundError: it cannot be downloaded; says where to put it by hand.
    """
    folder = Path(folder) if folder else Path(torch.hub.get_dir()) / 'checkpoints'
    file = folder / url.split('?')[0].rsplit('/', 1)[-1]
    if file.is_file():
        return file
    folder.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f'{file.name}.{os.getpid()}.part')
    with _one_at_a_time(folder):
        if file.is_file():
            return file
        try:
            torch.hub.download_url_to_file(url, str(part), progress=progress)
            part.replace(file)
        except (OSError, RuntimeError) as error:
            raise FileNotFoundError(
                f'Cannot download {url} ({error}). Without a network, fetch the file elsewhere and put it at {file}'
            ) from error
        finally:
            part.unlink(missing_ok=True)
    return file


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """One process of a machine inside; the others wait for it, however long it takes.

    A barrier of NCCL would end the run after ten minutes. A file system without locks lets all in: a file gets its name
    only when it is whole.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def torchvision_url(name: str) -> str:
    """Address of weights such as `torchvision://resnet50`, from the list that MMEngine ships.

    Raises:
        FileNotFoundError: the list does not have them.
    """
    addresses = json.loads((Path(mmengine.__path__[0]) / 'hub' / 'torchvision_0.12.json').read_text())
    address = addresses.get(name.split('://', 1)[1])
    if address is None:
        raise FileNotFoundError(f'{name} is not among the weights that are known without torchvision installed.')
    return address


class LateRemoval:
    """A file backend whose removals wait until `finish`: the old checkpoint goes when the new one is there.

    Args:
        backend: MMEngine's file backend.
    """

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._late: list[tuple[Callable[[str], None], str, int | None]] = []

    def __getattr__(self, name: str) -> Any:
        """Everything else is the backend's."""
        return getattr(self._backend, name)

    @staticmethod
    def _identity(path: str) -> int | None:
        return os.stat(path).st_ino if os.path.exists(path) else None

    def remove(self, path: str) -> None:
        """Remove a file later."""
        self._late.append((self._backend.remove, path, self._identity(path)))

    def rmtree(self, path: str) -> None:
        """Remove a folder later."""
        self._late.append((self._backend.rmtree, path, self._identity(path)))

    def finish(self) -> None:
        """Remove what waits, unless a new file has taken its name."""
        for remove, path, identity in self._late:
            if self._identity(path) == identity:
                remove(path)


def removing_late(save: Callable[..., None]) -> Callable[..., None]:
    """A saving method of MMEngine's CheckpointHook that removes old checkpoints behind the new one, not before."""

    def saved(self: Any, *args: Any, **kwargs: Any) -> None:
        backend = self.file_backend
        self.file_backend = late = LateRemoval(backend)
        try:
            save(self, *args, **kwargs)
        finally:
            self.file_backend = backend
        late.finish()

    return saved


def _numbered(folder: Path) -> list[Path]:
    """Checkpoints of epochs or iterations, the newest first."""
    numbers = {path: re.fullmatch(r'(?:epoch|iter)_(\d+)\.pth', path.name) for path in folder.glob('*.pth')}
    return sorted((path for path, match in numbers.items() if match), key=lambda p: int(numbers[p][1]), reverse=True)


def last_whole_checkpoint(folder: str | Path, read: Callable[[str], Any]) -> str | None:
    """The checkpoint to resume from: the one that `last_checkpoint` names, or the newest before it that is whole.

    Args:
        folder: work directory.
        read: reads a checkpoint and raises an error with `user_mistake` for a damaged one.

    Returns:
        Path; None where there is no checkpoint yet.

    Raises:
        FileNotFoundError: `last_checkpoint` names a file that has gone, and there is no other.
        RuntimeError: there are checkpoints, and none is whole.
    """
    folder = Path(folder)
    pointer = folder / 'last_checkpoint'
    text = pointer.read_text().strip() if pointer.is_file() else ''
    named = Path(text) if text else None
    places = [folder / named.name, named] if named else []  # the first where the folder was moved
    first = [path for path in places if path.is_file()][:1]
    kept = first[0].parent if first else named.parent if named and named.parent.is_dir() else folder  # `out_dir`
    candidates = first + [path for path in _numbered(kept) + _numbered(folder) if path not in first]
    if named and not candidates:
        error = FileNotFoundError(
            f'{pointer} names {named}, which is not there, nor any other checkpoint to resume from.'
        )
        error.user_mistake = True
        raise error
    reasons = []
    for path in candidates:
        try:
            read(str(path))
        except RuntimeError as error:
            reasons.append(str(error))
            print_log(f'{error} The one before it is tried.', logger='current', level=30)
            continue
        return str(path)
    if reasons:
        error = RuntimeError(f'No checkpoint in {folder} is whole, so nothing can be resumed: ' + ' '.join(reasons))
        error.user_mistake = True
        raise error
    return None
