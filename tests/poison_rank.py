"""A hook for runs of several processes: one rank's distillation loss becomes NaN. Imported by `custom_imports`."""

import math
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner


@HOOKS.register_module()
class PoisonRankHook(Hook):
    """Poisons the loss `loss_kd` of one rank in one iteration (from 1)."""

    def __init__(self, rank: int, at: int) -> None:
        self.rank, self.at = rank, at

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        if runner.rank == self.rank and runner.iter + 1 == self.at:
            runner.model.module.distiller.distill_losses['loss_kd'].loss_weight = math.nan
