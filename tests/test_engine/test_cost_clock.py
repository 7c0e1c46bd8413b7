"""Who asks the clock of a step to tick, and who does not."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MessageHub
from torch import nn

from mmkd.engine.hooks.cost_hook import CostHook
from mmkd.models.algorithms.step_clock import StepClock


def after_steps(number: int, settings: dict) -> SimpleNamespace:
    """What the runner of a training looks like to the hook, some steps later."""
    model = nn.Linear(1, 1)
    model.clock = StepClock()
    hub = MessageHub(f'clock {settings}')
    runner = SimpleNamespace(model=model, message_hub=hub, cfg=Config(settings))
    hook = CostHook()
    hook.before_train(runner)
    for step in range(number):
        hook.before_train_iter(runner, step)
        with model.clock.part('teacher'):
            pass
        hook.after_train_iter(runner, step)
    return runner


# MMEngine compiles with an empty dictionary, too
@pytest.mark.parametrize('compiled', [True, dict(backend='eager'), dict()])
def test_of_a_training_that_is_compiled_as_a_whole_the_clock_keeps_nothing(compiled: bool | dict):
    runner = after_steps(3, dict(compile=compiled))
    clock = runner.model.clock
    assert not clock.listening and clock.finished() == []
    assert not any(name.endswith('teacher_time') for name in runner.message_hub.log_scalars)
    if not torch.cuda.is_available():
        assert 'train/memory' in runner.message_hub.log_scalars


@pytest.mark.parametrize('settings', [dict(), dict(compile=False), dict(compile=None)])
def test_every_other_step_is_split_and_then_forgotten(settings: dict):
    runner = after_steps(3, settings)
    assert runner.model.clock.finished() == []
    assert len(runner.message_hub.get_scalar('train/teacher_time').data[0]) == 3
