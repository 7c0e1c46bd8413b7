"""What each step costs, in the training log: data, teacher, student, distillation, memory."""

import resource
import sys
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmkd.registry import HOOKS

# ru_maxrss is in KiB on Linux and in bytes on macOS.
_PER_MIB = 2**20 if sys.platform == 'darwin' else 2**10


@HOOKS.register_module()
class CostHook(Hook):
    """Adds the split of a step's time to the training log, beside MMEngine's `time`, `data_time` and `eta`.

    `teacher_time` is the teacher's forward (of a self-teacher also its own loss), `distill_time` the forward of
    connectors and losses, `student_time` all the rest: the student's forward, the whole backward pass, the optimiser.
    In seconds, mean of the last steps. `memory` is the peak of the process in MiB where there is no GPU (of which
    MMEngine logs the memory by itself). The device is never waited for. A step that MMEngine compiles as a whole
    (`compile=True`) is not split. Algorithms bring this hook by themselves.
    """

    # behind MMEngine's timer, before its logger
    priority = 'NORMAL'

    def before_train(self, runner: Runner) -> None:
        """Find the algorithm's clock."""
        model = getattr(runner.model, 'module', runner.model)
        self._clock = model.clock
        self._device = next(model.parameters()).device
        self._split = runner.cfg.get('compile') in (None, False)  # MMEngine compiles with an empty dictionary, too

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """The data is there, the step begins."""
        if self._split:
            self._clock.begin(self._device)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        """Log the steps that the device has finished."""
        hub = runner.message_hub
        if self._split:
            self._clock.end()
        for seconds in self._clock.finished() if self._split else ():
            teacher, distill = seconds.get('teacher', 0.0), seconds.get('distill', 0.0)
            hub.update_scalar('train/teacher_time', teacher, resumed=False)
            hub.update_scalar('train/distill_time', distill, resumed=False)
            hub.update_scalar('train/student_time', seconds['step'] - teacher - distill, resumed=False)
        if not torch.cuda.is_available():
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _PER_MIB
            hub.update_scalar('train/memory', peak, resumed=False)
