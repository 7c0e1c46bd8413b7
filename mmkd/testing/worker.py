"""One run of an experiment in its own process: `python -m mmkd.testing.worker RUN_FOLDER`.

Reads `config.py` in the folder, trains it through MMEngine's Runner and leaves `result.json`, `progress.json` and
the checkpoint there. A crash here is one failed run, not a failed experiment. A run that was interrupted goes on from
its last whole epoch where that gives the same numbers to the last bit, else from its beginning.
"""

import argparse
import datetime
import fcntl
import hashlib
import importlib
import json
import os
import platform
import resource
from collections.abc import Sequence
from pathlib import Path

import mmengine
import torch
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.runner import Runner

from mmkd import __version__
from mmkd.compat import load_checkpoint_file
from mmkd.testing.recorder import RunRecorder, can_go_on_from, device_name, state_digest, student_of
from mmkd.testing.runs import read_json, write_json

# What a run's numbers depend on, beside its config.
_CODE = ('functional', 'models', 'engine', 'datasets', 'evaluation', 'compat.py', 'registry.py')
_CODE += ('testing/recorder.py', 'testing/worker.py')


def train_run(folder: Path, metrics: dict[str, str]) -> dict:
    """Train the config of one folder.

    Args:
        folder: Holds `config.py`; everything is written into it.
        metrics: Key the metric reports under -> name.

    Returns:
        The content of `result.json`.
    """
    importlib.import_module('mmkd.compat')  # checkpoints are read without executing code
    written = Config.fromfile(folder / 'config.py')
    # MMEngine writes what it runs, with folder and resuming: not over config.py, by which the next call knows the run
    cfg = Config(written._cfg_dict, cfg_text=written.text, filename=str(folder / 'config_as_run.py'))
    cfg.work_dir = str(folder)
    around = circumstances()
    recorder = RunRecorder(folder, metrics, circumstances=around)
    start = resume_point(folder, around, cfg.train_cfg)
    if start is not None:
        cfg.resume, cfg.load_from = True, str(start)
    runner = Runner.from_cfg(cfg)
    runner.register_hook(recorder)
    runner.train()
    student = student_of(runner.model)
    if not recorder.curve or recorder.curve[-1]['epoch'] != runner.max_epochs:
        raise RuntimeError(f'{folder} was trained for {runner.max_epochs} epochs, but its last epoch was not scored')
    last = recorder.curve[-1]
    result = {
        'metrics': {name: last[name] for name in metrics.values()},
        'curve': recorder.curve,
        'epochs': runner.max_epochs,
        'train_seconds': round(recorder.train_seconds, 2),
        'train_cpu_seconds': round(recorder.train_cpu_seconds, 2),
        'wall_seconds': round(recorder.wall_seconds, 2),
        'resumed': recorder.resumed,
        'peak_memory_mb': _peak_memory_mb(),
        'parameters': sum(p.numel() for p in student.parameters()),
        'initial_sha256': recorder.initial,
        'batches_sha256': recorder.batches.hexdigest(),
        'weights_sha256': state_digest(student),
        'checkpoint': (folder / 'last_checkpoint').read_text().strip(),
        **around,
        'hardware': hardware_class(str(next(student.parameters()).device)),
        'finished': datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds'),
    }
    diagnosis = read_json(Path(runner.log_dir) / 'diagnosis.json')
    if diagnosis:
        result['diagnosis'] = diagnosis['losses']
    teacher = (read_json(folder / 'arm.json') or {}).get('teacher_sha256')
    if teacher:
        result['teacher_sha256'] = teacher
    if is_main_process():
        write_json(folder / 'result.json', result)
        (folder / 'batches.txt').unlink()
    return result


def resume_point(folder: Path, around: dict, train_cfg: dict) -> Path | None:
    """The newest checkpoint that the run can go on from to the last bit.

    Args:
        folder: Of the run.
        around: The circumstances of now.
        train_cfg: `max_epochs`, and `val_interval`: epochs between two scorings.

    Returns:
        A file; None where the run begins at its beginning.
    """
    for path in sorted(folder.glob('epoch_*.pth'), key=lambda path: -path.stat().st_mtime_ns):
        try:
            checkpoint = load_checkpoint_file(str(path))
        except Exception as error:  # a damaged file is one that cannot be used, whatever is wrong with it
            print(f'{path.name} cannot be read ({type(error).__name__}): not used')
            continue
        if can_go_on_from(checkpoint, folder, around, train_cfg.get('val_interval', 1), train_cfg['max_epochs']):
            return path
    return None


def circumstances() -> dict:
    """What must be the same for a run to go on as if it had never stopped, and what its numbers belong to."""
    return {
        'code': code_digest(),
        'versions': {'mmkd': __version__, 'torch': str(torch.__version__), 'mmengine': mmengine.__version__},
        'threads': torch.get_num_threads(),
        'device': device_name(),
    }


def code_digest() -> str:
    """Digest of the sources of mmkd that a training runs through, 12 digits."""
    package = Path(__file__).parents[1]
    files = [file for name in _CODE for file in sorted((package / name).rglob('*.py')) or [package / name]]
    digest = hashlib.sha256()
    for file in files:
        digest.update(str(file.relative_to(package)).encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def hardware_class(device: str) -> str:
    """What the numbers were measured on, in words.

    Args:
        device: that computed: `cpu`, `cuda`, `cuda:1`.
    """
    if device.startswith('cuda'):
        return torch.cuda.get_device_name(device)
    return f'{os.cpu_count()} CPU cores ({platform.machine()}), maybe shared with other work'


def _peak_memory_mb() -> int:
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**20)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: the folder of the run.

    Args:
        argv: Arguments; those of the process when None.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('folder', type=Path, help='folder that holds config.py and metrics.json')
    folder = parser.parse_args(argv).folder
    with (folder / 'config.py').open() as held:  # one process a folder: the next call waits for this one's end
        fcntl.flock(held, fcntl.LOCK_EX)
        train_run(folder, json.loads((folder / 'metrics.json').read_text()))


if __name__ == '__main__':
    main()
