"""One training of one arm as it lies on disk, and the small files that processes leave for each other."""

import fcntl
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path


class ExperimentError(RuntimeError):
    """An experiment that cannot go on; the message is for the person at the keyboard.

    Args:
        message: For that person.
        results: Of the runs that could be finished all the same.
    """

    def __init__(self, message: str, results: dict | None = None) -> None:
        super().__init__(message)
        self.results = results


@dataclass
class Run:
    """One training of one arm.

    Args:
        arm: Its name.
        seed: Its seed.
        folder: Where it lives, or would.
        stored: What a committed store says of it, where it was finished elsewhere or earlier.
    """

    arm: str
    seed: int
    folder: Path
    stored: dict | None = None

    @property
    def result(self) -> dict | None:
        """What the finished run found; None before. The store's word counts where both know the run."""
        local = read_json(self.folder / 'result.json')
        if self.stored is None or (local and local.get('finished') == self.stored.get('finished')):
            return local
        return self.stored

    @property
    def checkpoint(self) -> str | None:
        """The finished run's weights, where they are on this machine."""
        path = (self.result or {}).get('checkpoint')
        places = [Path(path), self.folder / Path(path).name] if path else []  # the second where the folder was moved
        return next((str(place) for place in places if place.is_file()), None)

    @property
    def progress(self) -> dict:
        """State of a run under way; empty before its first step."""
        return read_json(self.folder / 'progress.json') or {}

    @property
    def record(self) -> dict:
        """What the arm is: `arm.json` of its folder; empty before the run was prepared."""
        return read_json(self.folder / 'arm.json') or {}


def read_json(path: Path) -> dict | None:
    """Content of a file; None where it is not there or not whole."""
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError):
        return None


def write_json(path: Path, content: dict | list) -> None:
    """Write a file at once, so that a reader never finds half of it."""
    write_text(path, json.dumps(content, indent=1))


def write_text(path: Path, text: str) -> None:
    """Write a file at once, so that a reader never finds half of it.

    Args:
        path: Its folder must exist.
        text: New content.
    """
    part = path.with_name(path.name + f'.{os.getpid()}')
    part.write_text(text, encoding='utf-8')
    part.replace(path)


def prepare_folder(run: Run, config: str, record: dict, metrics: dict[str, str]) -> None:
    """Make a folder ready; what an interrupted run of the very same config left stays, for it to go on from.

    Args:
        run: Whose folder it is.
        config: Text of `config.py`.
        record: For `arm.json`.
        metrics: Key the metric reports under -> name, for `metrics.json`.
    """
    file = run.folder / 'config.py'
    same = file.is_file() and file.read_text(encoding='utf-8') == config and run.record == record
    if run.folder.exists() and not (same and read_json(run.folder / 'metrics.json') == metrics):
        shutil.rmtree(run.folder)
    run.folder.mkdir(parents=True, exist_ok=True)
    write_json(run.folder / 'arm.json', record)
    write_json(run.folder / 'metrics.json', metrics)
    if not same:  # else the file stays the one that a worker holds
        write_text(file, config)


def is_in_use(run: Run) -> bool:
    """Whether a worker is training in the folder of a run: it holds `config.py`."""
    config = run.folder / 'config.py'
    if not config.is_file():
        return False
    with config.open() as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
