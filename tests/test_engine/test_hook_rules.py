"""Settings of the checkpoint hook that would end a training at its first save, said before it begins."""

import copy
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS, RUNNERS, DefaultScope
from mmengine.runner import Runner

from mmkd.engine.config_rules import PROBLEMS
from mmkd.engine.hook_rules import best_score_unknown, checkpoint_keys, checkpoint_numbers
from mmkd.engine.launch import load_config, prepare_training, train
from mmkd.engine.preflight import PreflightError
from mmkd.testing.toy_run import make_toy_run

COCO = dict(type='CocoMetric', ann_file='val.json')
KITTI = dict(type='mmkd.KittiMetric')


def said(checkpoint: dict | None, evaluator: Any = COCO, **more: Any) -> list[str]:
    cfg = Config(dict(default_hooks=dict(checkpoint=checkpoint), val_evaluator=copy.deepcopy(evaluator), **more))
    rules = (checkpoint_keys, checkpoint_numbers, best_score_unknown)
    assert set(rules) <= set(PROBLEMS)
    with DefaultScope.overwrite_default_scope('mmdet'):
        return [text for rule in rules for text in rule(cfg)]


def test_a_training_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    toy = make_toy_run(tmp_path / 'toy')
    cfg = load_config(str(toy.config), {'default_hooks.checkpoint.intervall': 1})
    with pytest.raises(PreflightError, match=r'default_hooks.checkpoint.intervall: .* nearest: interval'):
        train(prepare_training(cfg, config_name='toy', work_dir=str(tmp_path / 'run')))
    assert not (tmp_path / 'run').exists()


def hook(**settings: Any) -> dict:
    return dict(type='CheckpointHook', **settings)


@HOOKS.register_module(force=True)
class OpenCheckpointHook(CheckpointHook):
    def __init__(self, mine: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)


@HOOKS.register_module(force=True)
class StrictCheckpointHook(CheckpointHook):
    def __init__(self, interval: int = 1) -> None:
        super().__init__(interval=interval)


@RUNNERS.register_module(force=True)
class TaggingRunner(Runner):
    def save_checkpoint(self, out_dir: str, filename: str, *args: Any, tag: str = '', **own: Any) -> None: ...


@RUNNERS.register_module(force=True)
class NamingRunner(Runner):
    def save_checkpoint(self, out_dir: str, filename: str, file_client_args: Any = None, tag: str = '') -> None: ...


@pytest.mark.parametrize(
    'settings',
    [
        dict(),
        dict(interval=1, max_keep_ckpts=3, save_best='auto', priority='LOW', _scope_='mmengine'),
        dict(interval=-1, by_epoch=False, save_begin=2, published_keys=['meta', 'state_dict']),
        dict(interval=2.0, save_best=['coco/bbox_mAP', 'coco/bbox_mAP_50'], rule='greater', filename_tmpl='e_{}.pth'),
        dict(save_best=None),
    ],
)
def test_right_settings_pass(settings: dict) -> None:
    assert said(hook(**settings)) == []


@pytest.mark.parametrize(
    'checkpoint', [None, dict(type='mmkd.GuardHook', x=1), dict(type='NoSuchHook', x=1), dict(x=1)]
)
def test_what_is_no_checkpoint_hook_is_left_to_mmengine(checkpoint: dict | None) -> None:
    assert said(checkpoint) == []
    assert list(checkpoint_keys(Config(dict()))) == []


@pytest.mark.parametrize(
    ('key', 'near'), [('max_keep_ckpt', 'max_keep_ckpts'), ('intervall', 'interval'), ('savebest', 'save_best')]
)
def test_a_misspelt_key_is_named_with_the_nearest(key: str, near: str) -> None:
    (text,) = said(hook(interval=1, **{key: 1}))
    assert text.startswith(f'default_hooks.checkpoint.{key}: CheckpointHook knows no such key')
    assert f'nearest: {near}' in text


def test_what_mmengines_saving_is_given_already_is_no_key_either() -> None:
    """`filename=` in the configuration ends in `got multiple values for argument`."""
    for key in ('filename', 'meta'):
        (text,) = said(hook(**{key: 'x'}))
        assert f'checkpoint.{key}: ' in text


def test_a_hook_among_the_custom_ones_is_read_too() -> None:
    (text,) = said(None, custom_hooks=[dict(type='EMAHook', what=1), hook(intervall=1)])
    assert text.startswith('custom_hooks[1].intervall: ')


def test_a_hook_of_ones_own_has_its_keys_too() -> None:
    assert said(dict(type='OpenCheckpointHook', mine=1, interval=2)) == []
    assert said(dict(type=OpenCheckpointHook, mine=1, interval=2)) == []
    (text,) = said(dict(type='OpenCheckpointHook', mien=1))
    assert 'checkpoint.mien: OpenCheckpointHook knows no such key' in text and 'nearest: mine' in text
    assert said(dict(type='StrictCheckpointHook', mine=1)) == [], 'refused by Python when the Runner is built'


def test_a_runner_of_ones_own_may_take_more_when_it_saves() -> None:
    assert said(hook(tag='x', tga='y'), runner_type='TaggingRunner') == []
    assert said(hook(tag='x'), runner_type='NamingRunner') == []
    (text,) = said(hook(tga='x'), runner_type='NamingRunner')
    assert 'checkpoint.tga: ' in text and 'tag' in text


@pytest.mark.parametrize('interval', ['abc', None, 0, -2, 0.5, True])
def test_an_interval_that_is_no_number_of_epochs_is_refused(interval: Any) -> None:
    (text,) = said(hook(interval=interval))
    assert text.startswith(f'default_hooks.checkpoint.interval is {interval!r}: epochs from one save to the next')
    (text,) = said(hook(interval=interval, by_epoch=False))
    assert f'{interval!r}: iterations from' in text


def test_other_numbers_must_be_numbers() -> None:
    assert said(hook(max_keep_ckpts='3')) == [
        "default_hooks.checkpoint.max_keep_ckpts is '3': it must be a whole number."
    ]
    assert said(hook(save_begin=None)) == ['default_hooks.checkpoint.save_begin is None: it must be a whole number.']


@pytest.mark.parametrize(
    ('evaluator', 'name', 'near'),
    [
        (COCO, 'bbox_mAP', 'coco/bbox_mAP'),
        ([COCO], ['auto_', 'coco/bbox_mAP'], None),
        (COCO, 'coco/bbox_map', 'coco/bbox_mAP'),
        (COCO, 'coco/segm_mAP', None),
        (dict(COCO, prefix='own'), 'coco/bbox_mAP', 'own/bbox_mAP'),
        (dict(COCO, metric_items=['mAP']), 'coco/bbox_mAP_50', 'coco/bbox_mAP'),
        (KITTI, 'mean_R40_moderate', 'kitti/mean_R40_moderate'),
        (dict(COCO, classwise=True), 'kitti/car_precision', None),
    ],
)
def test_a_score_that_the_evaluator_does_not_give_is_named(evaluator: Any, name: Any, near: str | None) -> None:
    (text,) = said(hook(save_best=name, rule='greater'), evaluator)
    wrong = name if isinstance(name, str) else name[0]
    assert f'checkpoint.save_best: val_evaluator gives no {wrong!r}' in text
    assert near is None or near in text.split('; ')[-1]


@pytest.mark.parametrize(
    ('evaluator', 'name'),
    [
        (COCO, 'coco/bbox_mAP_s'),
        (dict(COCO, metric=['bbox', 'segm']), 'coco/segm_mAP_75'),
        (dict(COCO, metric='proposal'), 'coco/AR@300'),
        (dict(COCO, metric='proposal_fast', proposal_nums=(1, 10)), 'coco/AR@10'),
        (dict(COCO, classwise=True), 'coco/car_precision'),
        (dict(COCO, prefix='own'), 'own/bbox_mAP'),
        (KITTI, 'kitti/Car_R40_moderate'),
        ([COCO, KITTI], 'kitti/mean_R11_easy'),
        (dict(COCO, format_only=True), 'bbox_mAP'),
        (dict(type='VOCMetric'), 'mAP'),
        ([COCO, dict(type='NoSuchMetric')], 'x'),
        (None, 'bbox_mAP'),
    ],
)
def test_a_score_that_can_be_there_passes(evaluator: Any, name: str) -> None:
    assert said(hook(save_best=name), evaluator) == []
