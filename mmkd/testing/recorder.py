"""What a run writes down while it is trained, and what its checkpoints hold so that it can go on to the last bit."""

import hashlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from mmkd.engine.random_state import get_random_state, set_random_state
from mmkd.testing.runs import read_json, write_json

KEY = 'experiment'  # of a checkpoint: the recorder's state
PARENT = 'MMKD_EXPERIMENT_PID'  # environment: the process whose end is the run's end


class ParentGoneError(RuntimeError):
    """The process that started this run has died."""


class RunRecorder(Hook):
    """Writes down what makes runs comparable: scores, time, memory, and what they started from and were fed.

    Scoring leaves no trace in the random state, whatever the arm, so that all arms go on from the same one.

    Args:
        folder: Of the run.
        metrics: Key the metric reports under -> name.
        every: Steps between two writings of the progress.
        circumstances: What a checkpoint must agree with to be gone on from.
    """

    priority = 'LOW'  # before the checkpoint is written: its time is not training, and it holds what is noted here

    def __init__(
        self, folder: Path, metrics: dict[str, str], every: int = 3, circumstances: dict[str, Any] | None = None
    ) -> None:
        self.folder, self.metrics, self.every = folder, metrics, every
        self.circumstances = circumstances or {}
        self.curve: list[dict] = []
        self.initial, self.batches = '', hashlib.sha256()
        self.train_seconds = self.train_cpu_seconds = 0.0
        self.earlier_seconds, self.resumed = 0.0, 0
        self._started = time.perf_counter()
        self._epoch_start = (0.0, 0.0)
        self._random: dict | None = None
        self._before_val: dict | None = None
        self._seen = folder / 'batches.txt'
        self._parent = os.environ.get(PARENT)

    @property
    def wall_seconds(self) -> float:
        """Clock time of the run up to now, earlier pieces included."""
        return self.earlier_seconds + time.perf_counter() - self._started

    def before_train(self, runner: Runner) -> None:
        """Remember the initial student, or go on in the random state of the checkpoint.

        Args:
            runner: Of MMEngine.
        """
        if self._random is not None:
            set_random_state(self._random)
            self._random = None
            return
        self.initial = state_digest(student_of(runner.model))
        self._seen.write_bytes(b'')

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

        Raises:
            ParentGoneError: Where nobody waits for this run any more.
        """
        seen = b''
        for sample in (data_batch or {}).get('data_samples', ()):
            one = sample.metainfo.get('img_path'), sample.metainfo.get('flip')
            seen += repr((Path(str(one[0])).name, one[1])).encode()
        self.batches.update(seen)
        with self._seen.open('ab') as file:
            file.write(seen)
        if runner.iter % self.every == 0:
            self.write_progress(runner, runner.iter + 1)
        self._end_with_the_parent()

    def after_train_epoch(self, runner: Runner) -> None:
        """Stop the clock.

        Args:
            runner: Of MMEngine.
        """
        self.train_seconds += time.perf_counter() - self._epoch_start[0]
        self.train_cpu_seconds += time.process_time() - self._epoch_start[1]

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        """Look whether anybody waits for this run.

        Args:
            runner: Of MMEngine.
            batch_idx: Image of the split.
            data_batch: Not used.
            outputs: Not used.

        Raises:
            ParentGoneError: Where nobody does.
        """
        self._end_with_the_parent()

    def before_val(self, runner: Runner) -> None:
        """Remember the random state."""
        self._before_val = get_random_state()

    def after_val(self, runner: Runner) -> None:
        """Go on as if there had been no scoring."""
        if self._before_val is not None:
            set_random_state(self._before_val)

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
        write_json(self.folder / 'curve.json', self.curve)
        self.write_progress(runner, runner.iter)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Add what going on to the last bit needs.

        Args:
            runner: Of MMEngine.
            checkpoint: That is about to be written, at the end of an epoch and before its scoring.
        """
        checkpoint[KEY] = dict(
            circumstances=self.circumstances,
            random=get_random_state(),
            initial=self.initial,
            batches=self._seen.stat().st_size,
            train_seconds=self.train_seconds,
            train_cpu_seconds=self.train_cpu_seconds,
            wall_seconds=self.wall_seconds,
            resumed=self.resumed,
        )

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Take up what `before_save_checkpoint` left; weights alone (`load_from`) change nothing here.

        Args:
            runner: Of MMEngine.
            checkpoint: That is gone on from.
        """
        if not runner._resume or KEY not in checkpoint:
            return
        state, epoch = checkpoint[KEY], checkpoint['meta']['epoch']
        self._random, self.initial = state['random'], state['initial']
        self.train_seconds, self.train_cpu_seconds = state['train_seconds'], state['train_cpu_seconds']
        self.earlier_seconds, self.resumed = state['wall_seconds'], state['resumed'] + 1
        self.curve = [point for point in _curve(self.folder) if point['epoch'] <= epoch]
        os.truncate(self._seen, state['batches'])
        self.batches = hashlib.sha256(self._seen.read_bytes())

    def _end_with_the_parent(self) -> None:
        if self._parent and os.getppid() != int(self._parent):
            raise ParentGoneError('the process that started this run has ended; the next call goes on from here')

    def write_progress(self, runner: Runner, step: int) -> None:
        """Leave the state where the parent process looks for it.

        Args:
            runner: Of MMEngine.
            step: Steps done.
        """
        last = self.curve[-1] if self.curve else {}
        write_json(self.folder / 'progress.json', {'step': step, 'steps': runner.max_iters, **last})


def can_go_on_from(
    checkpoint: Mapping[str, Any], folder: Path, circumstances: dict[str, Any], score_every: int, epochs: int
) -> bool:
    """Whether a run that goes on from this checkpoint ends as if it had never stopped.

    Args:
        checkpoint: Content of the file.
        folder: Of the run.
        circumstances: Of now: code, releases, threads, device.
        score_every: Epochs between two scorings; the last epoch is scored too.
        epochs: Of the whole run.

    Returns:
        False where something else runs now, or the epoch was to be scored and was not.
    """
    state, epoch = checkpoint.get(KEY), checkpoint.get('meta', {}).get('epoch')
    if state is None or not epoch or state['circumstances'] != circumstances:
        return False
    seen = folder / 'batches.txt'
    if not seen.is_file() or seen.stat().st_size < state['batches']:
        return False
    scored = {point['epoch'] for point in _curve(folder)}
    due = set(range(score_every, epoch + 1, score_every)) | ({epoch} if epoch == epochs else set())
    return due <= scored


def _curve(folder: Path) -> list[dict]:
    return read_json(folder / 'curve.json') or []


def student_of(model: nn.Module) -> nn.Module:
    """The detector that is being trained, inside or outside of an algorithm of MMRazor's kind."""
    model = model.module if is_model_wrapper(model) else model
    return getattr(model, 'architecture', model)


def state_digest(model: nn.Module | Mapping[str, Tensor]) -> str:
    """Sha256 of all parameters and buffers, by sorted name.

    Args:
        model: A network, or its state.

    Returns:
        Hexadecimal digits.
    """
    state = model.state_dict() if isinstance(model, nn.Module) else model
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def device_name() -> str:
    """`cpu`, or the name of the GPU."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else 'cpu'
