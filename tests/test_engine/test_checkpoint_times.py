"""When the random states of all processes are collected: exactly when MMEngine writes a checkpoint."""

from types import SimpleNamespace

import pytest
from mmengine.hooks import CheckpointHook

from mmkd.engine.hooks.distill_checkpoint_hook import DistillCheckpointHook


@pytest.mark.parametrize(
    ('interval', 'begin', 'due'), [(10, 5, [5, 15, 25]), (10, 0, [10, 20]), (7, 12, [12, 19, 26]), (-1, 0, [])]
)
def test_random_state_is_collected_when_a_checkpoint_is_due(interval: int, begin: int, due: list[int]) -> None:
    saver = CheckpointHook(interval=interval, by_epoch=False, save_begin=begin)
    hook = DistillCheckpointHook()
    runner = [SimpleNamespace(iter=iteration) for iteration in range(29)]
    assert [one.iter + 1 for one in runner if hook._is_due(one, saver)] == due
    assert [one.iter + 1 for one in runner if saver.every_n_train_iters(one, interval, begin)] == due
