"""Wiring mistakes are found when the distiller is built, and named."""

import copy

import pytest
from mmengine.registry import MODELS
from torch import nn

SSIM = dict(type='mmkd.SSIMLoss', data_range=1.0)
STUDENT = dict(from_student=True, recorder='neck')


class OtherNames(nn.Module):
    """A loss whose arguments have other names than this project's."""

    def forward(self, s_feature, mask):
        return (s_feature * mask).mean()


def config(**changes):
    neck = dict(type='ModuleOutputs', source='neck')
    sides = dict(preds_S=dict(from_student=True, recorder='neck'), preds_T=dict(from_student=False, recorder='neck'))
    cfg = dict(
        type='mmkd.DetectionDistiller',
        student_recorders=dict(neck=dict(neck)),
        teacher_recorders=dict(neck=dict(neck)),
        distill_losses=dict(loss_feat=dict(type='mmkd.SSIMLoss', data_range=1.0)),
        loss_forward_mappings=dict(loss_feat=sides),
    )
    return copy.deepcopy(cfg | changes)


def test_builds_under_the_scope_of_mmdetection():
    distiller = MODELS.build(config())
    assert distiller.module_sources(from_student=True) == ['neck']
    assert type(distiller.student_recorders.get_recorder('neck')).__name__ == 'ModuleOutputsRecorder'


def mapping(**changes):
    sides = config()['loss_forward_mappings']['loss_feat']
    return dict(loss_forward_mappings=dict(loss_feat=sides | changes))


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (
            dict(distill_losses=dict(ssim=dict(type='mmkd.SSIMLoss', data_range=1.0))),
            'must contain "loss", got \'ssim\'',
        ),
        (dict(schedules=dict(loss_fea=dict(begin=1))), "unknown loss 'loss_fea'; nearest: loss_feat"),
        (dict(loss_forward_mappings={}), "'loss_feat' has no entry in loss_forward_mappings"),
        (dict(loss_forward_mappings=dict(loss_x={})), "unknown loss 'loss_x'"),
        (
            mapping(preds_X=dict(from_student=True, recorder='neck')),
            "SSIMLoss .* takes no argument 'preds_X'; nearest: preds",
        ),
        (mapping(preds_S=dict(from_student=True, recorder='nek')), "student_recorders has no 'nek'; nearest: neck"),
        (mapping(preds_S=dict(from_student=True, recorder='neck', connector='c')), "unknown connector 'c'"),
        (mapping(mask=dict(mask='gauss')), "unknown mask 'gauss'"),
        (
            dict(loss_forward_mappings=dict(loss_feat=dict(preds_S=dict(from_student=True, recorder='neck')))),
            "lacks the argument 'preds_T'",
        ),
    ],
)
def test_refuses_wiring_mistakes(changes, message):
    with pytest.raises(ValueError, match=message):
        MODELS.build(config(**changes))


def test_the_factor_of_a_loss_follows_its_schedule():
    distiller = MODELS.build(config(schedules=dict(loss_feat=dict(begin=2, end=4, ramp='linear'))))
    needs = [distiller.begin_step(epoch, 0) for epoch in range(5)]
    assert needs == [False, False, False, True, True]
    assert distiller.factors == dict(loss_feat=1.0)


def test_a_loss_of_weight_zero_is_not_active():
    distiller = MODELS.build(
        config(distill_losses=dict(loss_feat=dict(type='mmkd.SSIMLoss', data_range=1.0, loss_weight=0.0)))
    )
    assert not distiller.begin_step(0, 0)
    assert not distiller.active('loss_feat')


def test_a_loss_built_with_weight_zero_leaves_no_recorder_and_refuses_a_later_weight():
    distiller = MODELS.build(
        config(distill_losses=dict(loss_feat=dict(type='mmkd.SSIMLoss', data_range=1.0, loss_weight=0.0)))
    )
    assert distiller.module_sources(from_student=True) == []
    assert distiller.module_sources(from_student=False) == []
    assert distiller.compute_distill_losses() == {'loss_feat': 0}
    distiller.distill_losses['loss_feat'].loss_weight = 1.0
    with pytest.raises(ValueError, match='was built with loss_weight=0 and is not wired'):
        distiller.begin_step(0, 0)


def test_a_mask_needs_the_maps_of_the_student():
    """MMRazor's FBKDLoss has no preds_S: before, a bare KeyError in the first iteration."""
    cfg = config(masks=dict(gauss=dict(type='mmkd.GaussianMask')), distill_losses=dict(loss_feat=dict(type=OtherNames)))
    cfg['loss_forward_mappings'] = dict(loss_feat=dict(s_feature=STUDENT, mask=dict(mask='gauss')))
    with pytest.raises(ValueError, match='loss_feat.mask is a mask for the maps of preds_S, .* has s_feature instead'):
        MODELS.build(cfg)
