"""A hook for runs of several processes: one rank is killed in the third epoch. Imported by `custom_imports`."""

import os
import signal
from pathlib import Path
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner


@HOOKS.register_module()
class DyingRankHook(Hook):
    """Kills the rank that the environment variable `DYING_RANK` names, and leaves the file `died`."""

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        if os.environ.get('DYING_RANK') == str(runner.rank) and runner.epoch >= 2:
            Path(runner.work_dir, 'died').touch()
            os.kill(os.getpid(), signal.SIGKILL)
