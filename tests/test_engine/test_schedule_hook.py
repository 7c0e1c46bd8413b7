"""`ScheduleHook`: schedules by epoch under a loop that counts iterations, and schedules that never begin."""

from types import SimpleNamespace

import pytest
from mmengine.config import Config, ConfigDict
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.logging import MessageHub
from mmengine.runner import IterBasedTrainLoop
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from mmkd.engine.config_rules import schedules_after_the_end
from mmkd.engine.hooks import schedule_hook
from mmkd.engine.hooks.schedule_hook import ScheduleError, ScheduleHook, epoch_length
from mmkd.models.distillers.detection_distiller import DetectionDistiller
from mmkd.models.distillers.schedule import WeightSchedule

from .conftest import ssim_distiller

LINEAR = dict(begin=0, end=2, ramp='linear')


def test_a_ramp_by_epoch_rises_under_the_iteration_loop(distill_config, run, tmp_path, monkeypatch):
    """8 images, 2 a step: an epoch of 4 iterations."""
    cfg = distill_config('retinanet', ssim_distiller(schedules=dict(loss_ssim=LINEAR)))
    cfg.train_cfg = ConfigDict(type='IterBasedTrainLoop', max_iters=5, val_interval=100)
    cfg.train_dataloader.sampler = dict(type='InfiniteSampler', shuffle=True)
    cfg.train_dataloader.batch_sampler = dict(type='AspectRatioBatchSampler')
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', interval=5, by_epoch=False)
    cfg.log_processor.by_epoch = False
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    factors, begin = [], DetectionDistiller.begin_step

    def begin_step(self, *progress):
        needs = begin(self, *progress)
        factors.append(self.factors['loss_ssim'])
        return needs

    monkeypatch.setattr(DetectionDistiller, 'begin_step', begin_step)
    run(cfg, tmp_path / 'run')
    assert factors[-5:] == [0.0] * 4 + [0.5]  # before them: the checks before training


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(10))


def test_an_epoch_is_what_all_processes_together_have_seen(monkeypatch):
    monkeypatch.setattr(schedule_hook, 'get_world_size', lambda: 2)
    data = list(range(12))
    infinite = InfiniteSampler(data, seed=0)
    assert epoch_length(DataLoader(data, batch_size=2, sampler=infinite)) == 3
    assert epoch_length(DataLoader(data, batch_sampler=BatchSampler(infinite, 2, drop_last=False))) == 3
    assert epoch_length(DataLoader(data, batch_size=2, sampler=DefaultSampler(data))) == 6  # made by one process
    assert epoch_length(DataLoader(Stream())) is None


def runner(loader: DataLoader, iterations: int, **schedule) -> SimpleNamespace:
    model = nn.Module()
    model.distiller = nn.Module()
    model.distiller.schedules = dict(loss_x=WeightSchedule(**schedule))
    loop = IterBasedTrainLoop.__new__(IterBasedTrainLoop)
    return SimpleNamespace(
        model=model,
        train_dataloader=loader,
        train_loop=loop,
        max_iters=iterations,
        message_hub=MessageHub(f'{schedule} {iterations}'),
    )


def test_epochs_of_a_set_without_length_are_refused():
    with pytest.raises(ScheduleError, match='schedules.loss_x counts epochs.* has no length.*by_epoch=False'):
        ScheduleHook().before_train(runner(DataLoader(Stream()), 9, **LINEAR))
    ScheduleHook().before_train(runner(DataLoader(Stream()), 9, by_epoch=False, **LINEAR))
    ScheduleHook().before_train(runner(DataLoader(Stream()), 9))


@pytest.mark.parametrize(('iterations', 'warned'), [(4, True), (5, False)])
def test_a_ramp_that_never_rises_is_said(iterations, warned, monkeypatch):
    said = []
    monkeypatch.setattr(schedule_hook, 'print_log', lambda text, **_: said.append(text))
    ScheduleHook().before_train(runner(DataLoader(list(range(8)), batch_size=2), iterations, **LINEAR))
    assert said == ['schedules.loss_x is still 0 in the last epoch, 0 (counted from 0): never distilled.'] * warned


@pytest.mark.parametrize(
    ('loop', 'says'),
    [
        (dict(max_epochs=4), 'begins at 4 epochs, but training ends at 4 epochs'),
        (dict(max_epochs=5), None),
        (dict(type='IterBasedTrainLoop', max_iters=4), 'begins at 4 epochs, but training ends at 4 iterations'),
        (dict(by_epoch=False, max_iters=5), None),
    ],
)
def test_the_rule_on_schedules_knows_both_loops(loop, says):
    model = dict(
        type='mmkd.MultiScaleSelfDistill', architecture={}, distiller=dict(schedules=dict(loss_x=dict(begin=4)))
    )
    found = list(schedules_after_the_end(Config(dict(model=model, train_cfg=loop))))
    assert [says in text for text in found] == ([] if says is None else [True])
