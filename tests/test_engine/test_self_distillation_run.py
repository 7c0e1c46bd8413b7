"""Whole runs of the self-distillation methods: checkpoint, resuming, EMA, mixed precision, weight 0."""

import copy
import shutil

import pytest
import torch
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.registry import MODELS

from mmkd.testing.methods import config_root

from .conftest import equal, load

METHODS = ('mssd', 'frskd_dense')


def self_distilled(cfg: Config, method: str, *, weight: float | None = None) -> Config:
    """The plain configuration under a shipped method, its schedules from the first step on."""
    distiller = Config.fromfile(config_root() / '_base_' / 'methods' / f'{method}.py').distiller
    distiller.pop('schedules')
    if weight is not None:
        for loss in distiller.distill_losses.values():
            loss.get('loss', loss).loss_weight = weight
    own = dict(type='mmkd.MultiScaleSelfDistill')
    if method != 'mssd':
        own = dict(
            type='mmkd.SelfTeacherDistill',
            self_teacher=dict(type='mmkd.BiFPNSelfTeacher', out_channels='same', norm='BN'),
            self_teacher_weight=1.0 if weight is None else weight,
        )
    cfg = copy.deepcopy(cfg)
    cfg.model = own | dict(architecture=cfg.model, distiller=distiller)
    return cfg


@pytest.mark.parametrize('method', METHODS)
def test_resuming_with_ema_ends_as_the_uninterrupted_run(method, plain_config, run, tmp_path):
    cfg = self_distilled(plain_config(), method)
    cfg.custom_hooks = [dict(type='EMAHook', momentum=0.1)]
    run(copy.deepcopy(cfg), tmp_path / 'whole')
    (tmp_path / 'resumed').mkdir()
    shutil.copy(tmp_path / 'whole' / 'epoch_1.pth', tmp_path / 'resumed' / 'epoch_1.pth')
    (tmp_path / 'resumed' / 'last_checkpoint').write_text(str(tmp_path / 'resumed' / 'epoch_1.pth'))
    torch.manual_seed(999)
    run(copy.deepcopy(cfg), tmp_path / 'resumed', resume='auto')
    whole, resumed = (load(tmp_path / name / 'epoch_2.pth') for name in ('whole', 'resumed'))
    for name in ('state_dict', 'ema_state_dict', 'optimizer', 'mmkd'):
        assert equal(whole[name], resumed[name]), name
    plain = MODELS.build(copy.deepcopy(cfg.model.architecture))
    assert set(whole['state_dict']) == set(plain.state_dict())
    plain.load_state_dict(whole['state_dict'], strict=True)
    apart = {'mssd': {'distiller'}, 'frskd_dense': {'distiller', 'self_teacher'}}[method]
    assert apart <= set(whole['mmkd'])
    assert Config.fromstring(whole['meta']['cfg'], '.py').model.type == 'RetinaNet'


@pytest.mark.parametrize('method', METHODS)
def test_a_run_with_weight_zero_is_the_plain_run(method, plain_config, run, tmp_path):
    cfg = plain_config(epochs=1)
    run(copy.deepcopy(cfg), tmp_path / 'plain')
    run(self_distilled(cfg, method, weight=0.0), tmp_path / 'distilled')
    plain, distilled = (load(tmp_path / name / 'epoch_1.pth') for name in ('plain', 'distilled'))
    assert equal(plain['state_dict'], distilled['state_dict'])


@pytest.mark.parametrize('method', METHODS)
def test_mixed_precision_gives_finite_losses_and_gradients(method, plain_config):
    cfg = self_distilled(plain_config(), method)
    model = MODELS.build(cfg.model)
    model.init_weights()
    data = model.data_preprocessor(demo_mm_inputs(2, [(3, 96, 128)] * 2, num_classes=4), True)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        losses = model(**data, mode='loss')
    total, _ = model.parse_losses(losses)
    total.backward()
    distilled = [value for name, value in losses.items() if name.startswith('distill.')]
    assert all(value.dtype == torch.float32 for value in distilled) and sum(distilled) > 0
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
