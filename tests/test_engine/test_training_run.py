"""Whole runs through MMEngine's Runner: checkpoints, resuming, EMA, hooks, optimisers, mixed precision."""

import copy
import math
import os
import shutil
from pathlib import Path

import pytest
import torch
from mmdet.apis import init_detector
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS
from mmengine.runner import Runner

from mmkd import compat
from mmkd.engine.hooks.distill_checkpoint_hook import DistillCheckpointHook, ResumeError
from mmkd.engine.hooks.teacher_check_hook import UselessTeacherError
from mmkd.engine.student_config import student_config

from .conftest import ssim_distiller


def load(path: Path) -> dict:
    return compat.load_checkpoint_file(path)


def equal(left: object, right: object) -> bool:
    """Equality of nested containers of tensors and numbers, to the last bit."""
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(equal(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(equal, left, right))
    return left == right or (left != left and right != right)


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
    assert set(checkpoint['mmkd']) == {'version', 'distiller', 'rng', 'world_size', 'teacher'}
    assert len(checkpoint['mmkd']['teacher']['sha256']) == 64
    detector = init_detector(str(tmp_path / 'run' / 'student.py'), str(path), device='cpu')
    assert type(detector).__name__ == 'RetinaNet'
    loaded = detector.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in checkpoint['state_dict'].items())


def interrupted(cfg: Config, run, folder: Path, *, keep: str) -> tuple[dict, dict]:
    """Last checkpoints of a whole run and of one resumed from `keep`."""
    run(copy.deepcopy(cfg), folder / 'whole')
    (folder / 'resumed').mkdir()
    shutil.copy(folder / 'whole' / keep, folder / 'resumed' / keep)
    (folder / 'resumed' / 'last_checkpoint').write_text(str(folder / 'resumed' / keep))
    torch.manual_seed(12345)
    run(copy.deepcopy(cfg), folder / 'resumed', resume='auto')
    last = max((folder / 'whole').glob('*.pth'), key=lambda p: p.stat().st_mtime).name
    return load(folder / 'whole' / last), load(folder / 'resumed' / last)


STATES = ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers', 'mmkd')


@pytest.mark.parametrize('family', ['retinanet', 'faster-rcnn'])
def test_resuming_ends_as_the_uninterrupted_run_to_the_last_bit(distill_config, run, tmp_path, family):
    """EMA, connectors, schedules and random sampling included; a ramp makes the weight differ from epoch to epoch."""
    schedules = dict(loss_ssim=dict(begin=0, end=3, ramp='linear'))
    cfg = distill_config(family, ssim_distiller(schedules=schedules), epochs=3)
    cfg.custom_hooks = [dict(type='EMAHook', momentum=0.1)]
    whole, resumed = interrupted(cfg, run, tmp_path, keep='epoch_1.pth')
    for name in STATES:
        assert equal(whole[name], resumed[name]), name


@pytest.mark.parametrize(
    ('sampler', 'workers'), [('InfiniteSampler', 0), ('InfiniteSampler', 2), ('DefaultSampler', 0)]
)
def test_resuming_inside_an_epoch_works_with_the_iteration_loop(distill_config, run, tmp_path, sampler, workers):
    """Faster R-CNN samples proposals, so that one random number too many in the training process shows."""
    cfg = distill_config('faster-rcnn')
    cfg.train_cfg = ConfigDict(type='IterBasedTrainLoop', max_iters=7, val_interval=100)
    cfg.train_dataloader.sampler = dict(type=sampler, shuffle=True)
    cfg.train_dataloader.num_workers = workers
    if sampler == 'InfiniteSampler':  # as MMDetection's configs have it
        cfg.train_dataloader.batch_sampler = dict(type='AspectRatioBatchSampler') if not workers else None
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', interval=3, by_epoch=False)
    cfg.log_processor.by_epoch = False
    whole, resumed = interrupted(cfg, run, tmp_path, keep='iter_3.pth')
    assert equal(whole['state_dict'], resumed['state_dict'])
    assert equal(whole['mmkd'], resumed['mmkd'])


class OnGpu(torch.Tensor):
    """As tensors are that MMEngine loads to a GPU: a forked process cannot fetch them."""

    main = os.getpid()

    def cpu(self) -> torch.Tensor:
        if os.getpid() != OnGpu.main:
            raise RuntimeError('Cannot re-initialize CUDA in forked subprocess.')
        return self.as_subclass(torch.Tensor)


def loaded_to_a_gpu(value: object) -> object:
    if isinstance(value, dict):
        return {key: loaded_to_a_gpu(child) for key, child in value.items()}
    if isinstance(value, list):
        return [loaded_to_a_gpu(child) for child in value]
    return value.as_subclass(OnGpu) if isinstance(value, torch.Tensor) else value


def test_workers_that_live_through_epochs_go_on_where_they_were(distill_config, run, tmp_path, monkeypatch):
    """MMDetection's default, `persistent_workers=True`: flips and sampled proposals as without interruption.

    MMEngine resumes with the checkpoint's tensors on the GPU, if there is one; the workers must not get them there.
    """
    restore = DistillCheckpointHook.after_load_checkpoint

    def load_to_a_gpu(self: DistillCheckpointHook, runner: Runner, checkpoint: dict) -> None:
        checkpoint['mmkd']['rng'] = loaded_to_a_gpu(checkpoint['mmkd']['rng'])
        restore(self, runner, checkpoint)

    monkeypatch.setattr(DistillCheckpointHook, 'after_load_checkpoint', load_to_a_gpu)
    cfg = distill_config('faster-rcnn', epochs=2)
    cfg.train_dataloader.update(num_workers=2, persistent_workers=True)
    whole, resumed = interrupted(cfg, run, tmp_path, keep='epoch_1.pth')
    assert len(whole['mmkd']['rng'][0]['workers']) == 2
    assert equal(whole['state_dict'], resumed['state_dict'])
    assert equal(whole['mmkd'], resumed['mmkd'])


def test_a_changed_number_of_processes_scales_the_rate_as_asked(distill_config, run, tmp_path):
    """The run had 2 processes (its checkpoint says), now there is 1: half the batch, half the rate."""
    cfg = distill_config(epochs=2)
    cfg.param_scheduler = [dict(type='MultiStepLR', by_epoch=True, milestones=[9])]
    cfg.auto_scale_lr = dict(enable=False, base_batch_size=4)
    cfg.optim_wrapper.optimizer.lr = 1e-3
    run(copy.deepcopy(cfg), tmp_path / 'run')
    path = tmp_path / 'run' / 'epoch_1.pth'
    checkpoint = load(path)
    checkpoint['mmkd'].update(world_size=2, rng=checkpoint['mmkd']['rng'] * 2)
    torch.save(checkpoint, path)
    with pytest.raises(ResumeError, match='had 2 processes, now 1'):
        run(copy.deepcopy(cfg), tmp_path / 'run', resume=str(path))
    runner = run(copy.deepcopy(cfg), tmp_path / 'run', resume=str(path), auto_scale_lr=True)
    assert runner.optim_wrapper.get_lr()['lr'][0] == pytest.approx(5e-4)
    log = max((tmp_path / 'run').rglob('*.log'), key=lambda p: p.stat().st_mtime).read_text()
    assert 'had 2 processes, now 1: its learning rate is multiplied by 0.5' in log


def test_resuming_inside_an_epoch_is_refused_with_the_epoch_loop(distill_config, run, tmp_path):
    cfg = distill_config(epochs=1)
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', interval=3, by_epoch=False)
    run(copy.deepcopy(cfg), tmp_path / 'run')
    with pytest.raises(ResumeError, match='written inside an epoch'):
        run(copy.deepcopy(cfg), tmp_path / 'run', resume=str(tmp_path / 'run' / 'iter_3.pth'))


def test_resuming_with_another_teacher_is_refused(distill_config, run, tmp_path):
    cfg = distill_config()
    run(copy.deepcopy(cfg), tmp_path / 'run')
    state = load(cfg.model.teacher_ckpt)['state_dict']
    torch.save(dict(state_dict={name: value + 1 for name, value in state.items()}), cfg.model.teacher_ckpt)
    with pytest.raises(ResumeError, match='had another teacher'):
        run(copy.deepcopy(cfg), tmp_path / 'run', resume=str(tmp_path / 'run' / 'epoch_1.pth'))


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
