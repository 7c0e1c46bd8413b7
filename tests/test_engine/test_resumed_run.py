"""Runs that are resumed: at an epoch, inside one, with workers, with another number of processes or another teacher."""

import copy
import os
import shutil
from pathlib import Path

import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.runner import Runner

from mmkd.engine.hooks.distill_checkpoint_hook import DistillCheckpointHook, ResumeError

from .conftest import equal, load, ssim_distiller


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
    """EMA, connectors, schedules and random sampling included; a ramp makes the weight differ from epoch to epoch.

    Its first epoch has weight 0 and leaves the connectors alone: resumed behind the second, their average has a past.
    """
    schedules = dict(loss_ssim=dict(begin=0, end=3, ramp='linear'))
    cfg = distill_config(family, ssim_distiller(schedules=schedules), epochs=3)
    cfg.custom_hooks = [dict(type='EMAHook', momentum=0.1)]
    whole, resumed = interrupted(cfg, run, tmp_path, keep='epoch_2.pth')
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
    checkpoint['mmkd'].update(world_size=2, rng=checkpoint['mmkd']['rng'] * 2, images=4)
    checkpoint['meta'].update(iter=1)
    torch.save(checkpoint, path)
    with pytest.raises(ResumeError, match='had 2 processes, now 1'):
        run(copy.deepcopy(cfg), tmp_path / 'run', resume=str(path))
    runner = run(copy.deepcopy(cfg), tmp_path / 'run', resume=str(path), auto_scale_lr=True)
    assert runner.optim_wrapper.get_lr()['lr'][0] == pytest.approx(5e-4)
    log = max((tmp_path / 'run').rglob('*.log'), key=lambda p: p.stat().st_mtime).read_text()
    assert 'had 2 processes, now 1, and 4 images a step, now 2: its learning rate is multiplied by 0.5' in log
    again = run(copy.deepcopy(cfg), tmp_path / 'run', resume='auto')  # 5 iterations in two epochs are no mistake
    assert (again.epoch, again.iter) == (2, 5)


@pytest.mark.parametrize('before', [1, 2])
def test_a_random_state_that_cannot_be_given_to_these_processes_is_said(before, distill_config, run, tmp_path):
    """Two processes of one image, now one of two: the same images a step, so that the run goes on."""
    run(distill_config(epochs=1), tmp_path / 'run')
    path = tmp_path / 'run' / 'epoch_1.pth'
    checkpoint = load(path)
    checkpoint['mmkd'].update(world_size=before, rng=checkpoint['mmkd']['rng'] * before)
    torch.save(checkpoint, path)
    assert run(distill_config(epochs=2), tmp_path / 'run', resume='auto').epoch == 2
    log = max((tmp_path / 'run').rglob('*.log'), key=lambda p: p.stat().st_mtime).read_text()
    assert ('WARNING - The random state of 2 processes in the checkpoint cannot be given to 1' in log) == (before == 2)


def test_resuming_inside_an_epoch_is_refused_with_the_epoch_loop(distill_config, run, tmp_path):
    """Also behind its last iteration, where MMEngine notes the epoch as one that is to come; and whatever is scaled."""
    cfg = distill_config(epochs=1)
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', interval=1, by_epoch=False)
    cfg.auto_scale_lr = dict(enable=False, base_batch_size=2)
    run(copy.deepcopy(cfg), tmp_path / 'run')
    for name, scale in (('iter_3.pth', True), ('iter_4.pth', False)):
        with pytest.raises(ResumeError, match='written inside an epoch'):
            run(copy.deepcopy(cfg), tmp_path / 'run', resume=str(tmp_path / 'run' / name), auto_scale_lr=scale)


def test_resuming_with_another_teacher_is_refused(distill_config, run, tmp_path):
    cfg = distill_config()
    run(copy.deepcopy(cfg), tmp_path / 'run')
    state = load(cfg.model.teacher_ckpt)['state_dict']
    torch.save(dict(state_dict={name: value + 1 for name, value in state.items()}), cfg.model.teacher_ckpt)
    with pytest.raises(ResumeError, match='had another teacher'):
        run(copy.deepcopy(cfg), tmp_path / 'run', resume=str(tmp_path / 'run' / 'epoch_1.pth'))


@pytest.mark.parametrize('change', ['batch', 'accumulation'])
def test_another_batch_a_process_is_refused_or_scales_the_rate(change, distill_config, run, tmp_path):
    def changed():
        cfg = distill_config(epochs=2)
        cfg.auto_scale_lr = dict(base_batch_size=2)
        if change == 'batch':
            cfg.train_dataloader.batch_size = 4
        else:
            cfg.optim_wrapper.accumulative_counts = 2
        return cfg

    first = distill_config(epochs=1)
    rate = first.optim_wrapper.optimizer.lr
    run(first, tmp_path / 'first')
    checkpoint = str(tmp_path / 'first' / 'epoch_1.pth')
    assert load(checkpoint)['mmkd']['images'] == 2
    with pytest.raises(ResumeError, match='2 images a step, now 4: the batch and with it the learning rate'):
        run(changed(), tmp_path / 'refused', resume=checkpoint)
    runner = run(changed(), tmp_path / 'scaled', resume=checkpoint, auto_scale_lr=True)
    assert runner.optim_wrapper.optimizer.param_groups[0]['initial_lr'] == pytest.approx(2 * rate)


def test_a_best_checkpoint_leaves_the_iterations_own_as_it_should_be(distill_config, run, tmp_path):
    """MMEngine writes `iter_N.pth` again at a validation that finds the best score, also between two intervals."""

    def config():
        cfg = distill_config(epochs=1)
        cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=6, val_interval=3)
        cfg.param_scheduler = []
        for model in (cfg.model.architecture, cfg.model.teacher):
            model.test_cfg.score_thr = 0.0
        hook = dict(type='CheckpointHook', by_epoch=False, interval=2, save_best='coco/bbox_mAP', rule='greater')
        cfg.default_hooks.checkpoint = hook
        return cfg

    run(config(), tmp_path / 'whole')
    middle = tmp_path / 'whole' / 'iter_3.pth'
    assert middle.is_file(), 'written with the best score'
    run(config(), tmp_path / 'resumed', resume=str(middle))
    whole, resumed = (load(tmp_path / name / 'iter_6.pth') for name in ('whole', 'resumed'))
    assert equal(whole['state_dict'], resumed['state_dict'])
    states = [str(load(tmp_path / 'whole' / f'iter_{n}.pth')['mmkd']['rng'][0]['numpy']) for n in (2, 3)]
    assert states[0] != states[1], 'the pipeline has drawn'
