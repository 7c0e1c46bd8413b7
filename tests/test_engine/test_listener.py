"""What a run hangs on its model does not travel with copies of it."""

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from mmkd.engine.listener import RunListener
from mmkd.testing.toy_run import make_toy_run


def test_a_copy_and_a_pickle_are_deaf() -> None:
    heard: list[str] = []
    layer = nn.Identity()
    layer.register_forward_hook(RunListener(lambda module, inputs, outputs: heard.append('original')))
    copied = copy.deepcopy(layer)
    stored = io.BytesIO()
    torch.save(layer, stored)
    stored.seek(0)
    loaded = torch.load(stored, weights_only=False)
    for one in (copied, loaded, layer):
        assert one(3) == 3
    assert heard == ['original']


@HOOKS.register_module(force=True)
class CopyHook(Hook):
    """Copies and pickles the model in the middle of a training, as a callback of a user may."""

    copies: list = []

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        if runner.iter == 1:
            CopyHook.copies.append(copy.deepcopy(runner.model))
            torch.save(runner.model, io.BytesIO())


@pytest.mark.parametrize('diagnosis', [False, True])
def test_the_model_can_be_copied_during_training(diagnosis: bool, tmp_path: Path) -> None:
    cfg = make_toy_run(tmp_path / 'toy', train=6, epochs=1).load()
    cfg.work_dir, cfg.log_level = str(tmp_path / 'run'), 'WARNING'
    cfg.custom_hooks = [dict(type='CopyHook')] + [dict(type='mmkd.DiagnosisHook', interval=1, images=0)] * diagnosis
    cfg.train_cfg.val_interval = 99
    cfg.experiment_name = f'copied_{diagnosis}_{tmp_path.name}'
    CopyHook.copies.clear()
    runner = Runner.from_cfg(cfg)
    runner.train()
    (copied,) = CopyHook.copies
    guard = next(hook for hook in runner.hooks if type(hook).__name__ == 'NumberGuardHook')
    copied.train()(torch.zeros(1, 3, 64, 64), mode='tensor')
    assert not guard._pending
    assert copied.teacher is runner.model.teacher
