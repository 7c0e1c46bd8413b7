"""Whole runs through MMEngine's Runner: checkpoints, EMA, hooks, optimisers, mixed precision."""

import copy
import math

import pytest
import torch
from mmdet.apis import init_detector
from mmengine.config import Config
from mmengine.registry import MODELS

from mmkd.engine.hooks.teacher_check_hook import UselessTeacherError
from mmkd.engine.student_config import student_config

from .conftest import equal, load, ssim_distiller


def test_the_checkpoint_is_a_plain_students(distill_config, run, tmp_path):
    run(distill_config(epochs=1), tmp_path / 'run')
    path = tmp_path / 'run' / 'epoch_1.pth'
    checkpoint = load(path)
    plain = Config.fromstring(checkpoint['meta']['cfg'], '.py')
    assert plain.model.type == 'RetinaNet'
    assert 'mmkd' not in checkpoint['meta']['cfg']
    model = MODELS.build(copy.deepcopy(plain.model))
    assert set(checkpoint['state_dict']) == set(model.state_dict())
    model.load_state_dict(checkpoint['state_dict'], strict=True)
    assert set(checkpoint['mmkd']) == {'version', 'distiller', 'rng', 'world_size', 'inside_epoch', 'images', 'teacher'}
    assert len(checkpoint['mmkd']['teacher']['sha256']) == 64
    detector = init_detector(str(tmp_path / 'run' / 'student.py'), str(path), device='cpu')
    assert type(detector).__name__ == 'RetinaNet'
    loaded = detector.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in checkpoint['state_dict'].items())


def test_load_from_takes_the_student_alone(distill_config, plain_config, run, tmp_path):
    run(plain_config(epochs=1), tmp_path / 'plain')
    path = tmp_path / 'plain' / 'epoch_1.pth'
    cfg = distill_config(epochs=1)
    cfg.load_from = str(path)
    cfg.optim_wrapper.optimizer.lr = 1e-30
    runner = run(cfg, tmp_path / 'distilled')
    state = load(path)['state_dict']
    assert all(
        torch.equal(dict(runner.model.named_parameters())[n], v)
        for n, v in state.items()
        if n.endswith('weight') and 'bn' not in n and 'downsample' not in n
    )


def test_a_run_with_weight_zero_is_the_plain_run(distill_config, plain_config, run, tmp_path):
    """Through Runner, data loader and optimiser, up to the first validation."""
    distiller = ssim_distiller(schedules=dict(loss_ssim=dict(begin=1)))
    run(distill_config(distiller=distiller, epochs=2), tmp_path / 'zero')
    run(plain_config(epochs=2), tmp_path / 'plain')
    zero, plain = (load(tmp_path / name / 'epoch_1.pth')['state_dict'] for name in ('zero', 'plain'))
    assert equal(dict(zero), dict(plain))


def test_idle_connectors_do_not_decay(distill_config, run, tmp_path):
    """Off in the first epoch, on in the second: the connectors move in the second alone."""
    cfg = distill_config(distiller=ssim_distiller(schedules=dict(loss_ssim=dict(begin=1))), epochs=2)
    cfg.optim_wrapper.optimizer = dict(type='SGD', lr=0.1, weight_decay=0.5, momentum=0.9)
    runner = run(cfg, tmp_path / 'run')
    after_first, after_second = (load(tmp_path / 'run' / f'epoch_{i}.pth')['mmkd']['distiller'] for i in (1, 2))
    torch.manual_seed(cfg.randomness.seed)
    fresh = MODELS.build(copy.deepcopy(cfg.model)).distiller.saved_state()
    assert fresh
    assert equal(fresh, after_first)
    assert not equal(fresh, after_second)
    assert equal(after_second, runner.model.distiller.saved_state())


def test_gradients_that_were_accumulated_before_a_schedules_end_are_kept(distill_config, run, tmp_path):
    """On in the first of four forwards, one step behind the fourth; in the second epoch there is nothing to learn."""
    schedule = dict(loss_ssim=dict(end=1, by_epoch=False))
    cfg = distill_config(distiller=ssim_distiller(schedules=schedule), epochs=2)
    cfg.optim_wrapper.update(accumulative_counts=4, optimizer=dict(type='SGD', lr=0.1, weight_decay=0.5))
    run(cfg, tmp_path / 'run')
    after_first, after_second = (load(tmp_path / 'run' / f'epoch_{i}.pth')['mmkd']['distiller'] for i in (1, 2))
    torch.manual_seed(cfg.randomness.seed)
    fresh = MODELS.build(copy.deepcopy(cfg.model)).distiller.saved_state()
    assert not equal(fresh, after_first)
    assert equal(after_first, after_second)


def test_yolox_mode_switch_reaches_the_student(distill_config, run, tmp_path):
    cfg = distill_config('yolox', epochs=2)
    cfg.custom_hooks = [dict(type='YOLOXModeSwitchHook', num_last_epochs=1, skip_type_keys=(), priority=48)]
    cfg.train_dataloader.dataset = dict(type='MultiImageMixDataset', dataset=cfg.train_dataloader.dataset, pipeline=[])
    runner = run(cfg, tmp_path / 'run')
    assert runner.model.bbox_head.use_l1
    assert runner.model.architecture.bbox_head.use_l1


def test_layer_wise_learning_rates_see_the_students_names(distill_config, run, tmp_path):
    cfg = distill_config(epochs=1)
    cfg.optim_wrapper.paramwise_cfg = dict(custom_keys={'backbone': dict(lr_mult=0.1), 'bbox_head': dict(lr_mult=0.5)})
    runner = run(cfg, tmp_path / 'run')
    rates = {}
    for group in runner.optim_wrapper.optimizer.param_groups:
        for parameter in group['params']:
            rates[id(parameter)] = group['initial_lr']
    named = dict(runner.model.named_parameters())
    base = rates[id(named['neck.lateral_convs.0.conv.weight'])]
    assert math.isclose(rates[id(named['backbone.conv1.weight'])], 0.1 * base)
    assert math.isclose(rates[id(named['bbox_head.retina_cls.weight'])], 0.5 * base)
    assert any(name.startswith('distiller.connectors.adapt') for name in named)


def test_ema_holds_the_student_and_not_the_teacher(distill_config, run, tmp_path):
    cfg = distill_config(epochs=1)
    cfg.custom_hooks = [dict(type='EMAHook', ema_type='ExpMomentumEMA', momentum=0.01, update_buffers=True)]
    runner = run(cfg, tmp_path / 'run')
    checkpoint = load(tmp_path / 'run' / 'epoch_1.pth')
    names = {name.removeprefix('module.') for name in checkpoint['ema_state_dict']} - {'steps'}
    assert names == set(checkpoint['state_dict'])
    ema = next(hook.ema_model for hook in runner.hooks if hasattr(hook, 'ema_model'))
    assert ema.module.teacher is runner.model.teacher


def test_gradient_accumulation_trains(distill_config, run, tmp_path):
    cfg = distill_config(epochs=1)
    cfg.optim_wrapper.accumulative_counts = 2
    runner = run(cfg, tmp_path / 'run')
    assert runner.message_hub.get_scalar('train/distill.loss_ssim_p3').current() > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="MMEngine's AmpOptimWrapper needs a GPU")
@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
def test_mixed_precision_trains(distill_config, run, tmp_path, monkeypatch, dtype):
    """All steps are taken but the first few, for which a loss scale is looked for, and every layer learns."""
    cfg = distill_config(epochs=8)
    cfg.optim_wrapper.update(type='AmpOptimWrapper', dtype=dtype)
    before, steps = {}, []
    step = torch.optim.AdamW.step

    def counted(self: torch.optim.Optimizer, *args: object, **kwargs: object) -> object:
        parameters = [p for group in self.param_groups for p in group['params']]
        before.update({p: before.get(p, p.detach().clone()) for p in parameters})
        steps.append(1)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, 'step', counted)
    runner = run(cfg, tmp_path / 'run')
    assert all(torch.isfinite(p).all() for p in runner.model.parameters())
    assert len(steps) >= 24, 'of 32'
    assert not [p.shape for p, start in before.items() if p.requires_grad and torch.equal(p, start)]


def silence(checkpoint: str) -> None:
    """Make a teacher that sees no object anywhere."""
    state = load(checkpoint)['state_dict']
    state['bbox_head.retina_cls.bias'].fill_(-50)
    state['bbox_head.retina_cls.weight'].zero_()
    torch.save(dict(state_dict=state), checkpoint)


@pytest.mark.parametrize('hook', [dict(type='mmkd.TeacherCheckHook', num_images=2), None])
def test_a_teacher_that_detects_nothing_stops_the_run(distill_config, run, tmp_path, hook):
    """Also without a word about it in the configuration."""
    cfg = distill_config(epochs=1)
    cfg.default_hooks.teacher_check = hook
    if hook is None:
        cfg.default_hooks.pop('teacher_check')
    silence(cfg.model.teacher_ckpt)
    with pytest.raises(UselessTeacherError, match=r'nothing on the first \d+ validation images \(no detections\)'):
        run(cfg, tmp_path / 'run')
    assert not list((tmp_path / 'run').glob('*.pth'))


def test_the_students_config_is_plain_and_reloads(distill_config, tmp_path):
    cfg = distill_config()
    cfg.custom_hooks = [dict(type='EMAHook'), dict(type='mmkd.TeacherCheckHook')]
    plain = student_config(cfg)
    plain.dump(str(tmp_path / 'student.py'))
    again = Config.fromfile(str(tmp_path / 'student.py'))
    assert again.model.type == 'RetinaNet'
    assert [hook.type for hook in again.custom_hooks] == ['EMAHook']
    assert 'mmkd' not in again.pretty_text
    assert cfg.model.type == 'mmkd.TeacherStudentDistill'
