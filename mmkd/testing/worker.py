"""One run of an experiment in its own process: `python -m mmkd.testing.worker RUN_FOLDER`.

Reads `config.py` in the folder, trains it through MMEngine's Runner and leaves `result.json`, `progress.json` and
the checkpoint there. A crash here is one failed run, not a failed experiment.
"""

import argparse
import datetime
import hashlib
import importlib
import json
import os
import resource
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn


class RunRecorder(Hook):
    """Writes down what makes runs comparable: scores, time, memory, and what they started from and were fed.

    Args:
        folder: Of the run.
        metrics: Key the metric reports under -> name.
        every: Steps between two writings of the progress.
    """

    priority = 'VERY_LOW'

    def __init__(self, folder: Path, metrics: dict[str, str], every: int = 3) -> None:
        self.folder, self.metrics, self.every = folder, metrics, every
        self.curve: list[dict] = []
        self.initial, self.batches = '', hashlib.sha256()
        self.train_seconds = self.train_cpu_seconds = 0.0
        self._epoch_start = (0.0, 0.0)

    def before_train(self, runner: Runner) -> None:
        """Remember the initial student.

        Args:
            runner: Of MMEngine.
        """
        self.initial = state_digest(student_of(runner.model))

    def before_train_epoch(self, runner: Runner) -> None:
        """Start the clock: only training is counted, not scoring.

        Args:
            runner: Of MMEngine.
        """
        self._epoch_start = time.perf_counter(), time.process_time()

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        """Add the images of this step, and how they were flipped, to the digest of all batches.

        Args:
            runner: Of MMEngine.
            batch_idx: Step of the epoch.
            data_batch: What the model was given.
            outputs: Not used.
        """
        for sample in (data_batch or {}).get('data_samples', ()):
            seen = sample.metainfo.get('img_path'), sample.metainfo.get('flip')
            self.batches.update(repr((Path(str(seen[0])).name, seen[1])).encode())
        if runner.iter % self.every == 0:
            self.write_progress(runner, runner.iter + 1)

    def after_train_epoch(self, runner: Runner) -> None:
        """Stop the clock.

        Args:
            runner: Of MMEngine.
        """
        self.train_seconds += time.perf_counter() - self._epoch_start[0]
        self.train_cpu_seconds += time.process_time() - self._epoch_start[1]

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Add a point to the curve.

        Args:
            runner: Of MMEngine.
            metrics: Of this epoch; `CocoMetric` gives none where nothing was detected, which scores 0.

        Raises:
            KeyError: Where there are metrics, but not the expected ones.
        """
        point = {name: float(metrics[key]) if metrics else 0.0 for key, name in self.metrics.items()}
        self.curve.append({'epoch': runner.epoch, **point})
        self.write_progress(runner, runner.iter)

    def write_progress(self, runner: Runner, step: int) -> None:
        """Leave the state where the parent process looks for it.

        Args:
            runner: Of MMEngine.
            step: Steps done.
        """
        last = self.curve[-1] if self.curve else {}
        write_json(self.folder / 'progress.json', {'step': step, 'steps': runner.max_iters, **last})


def student_of(model: nn.Module) -> nn.Module:
    """The detector that is being trained, inside or outside of an algorithm of MMRazor's kind."""
    model = model.module if is_model_wrapper(model) else model
    return getattr(model, 'architecture', model)


def state_digest(model: nn.Module) -> str:
    """Sha256 of all parameters and buffers, by sorted name."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def write_json(path: Path, content: dict | list) -> None:
    """Write a file at once, so that a reader never finds half of it."""
    part = path.with_name(path.name + f'.{os.getpid()}')
    part.write_text(json.dumps(content, indent=1))
    part.replace(path)


def train_run(folder: Path, metrics: dict[str, str]) -> dict:
    """Train the config of one folder.

    Args:
        folder: Holds `config.py`; everything is written into it.
        metrics: Key the metric reports under -> name.

    Returns:
        The content of `result.json`.
    """
    importlib.import_module('mmkd.compat')  # checkpoints are read without executing code
    started = time.perf_counter()
    cfg = Config.fromfile(folder / 'config.py')
    cfg.work_dir = str(folder)
    runner = Runner.from_cfg(cfg)
    recorder = RunRecorder(folder, metrics)
    runner.register_hook(recorder)
    runner.train()
    student = student_of(runner.model)
    last = recorder.curve[-1]
    result = {
        'metrics': {name: last[name] for name in metrics.values()},
        'curve': recorder.curve,
        'train_seconds': round(recorder.train_seconds, 2),
        'train_cpu_seconds': round(recorder.train_cpu_seconds, 2),
        'wall_seconds': round(time.perf_counter() - started, 2),
        'peak_memory_mb': _peak_memory_mb(),
        'parameters': sum(p.numel() for p in student.parameters()),
        'initial_sha256': recorder.initial,
        'batches_sha256': recorder.batches.hexdigest(),
        'checkpoint': (folder / 'last_checkpoint').read_text().strip(),
        'threads': torch.get_num_threads(),
        'finished': datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds'),
    }
    if is_main_process():
        write_json(folder / 'result.json', result)
    return result


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
    train_run(folder, json.loads((folder / 'metrics.json').read_text()))


if __name__ == '__main__':
    main()
