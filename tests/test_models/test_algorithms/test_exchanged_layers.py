"""Layers that the Runner exchanges after the model was built, and names that detectors exchange while they load."""

import pytest
import torch
from mmengine.model import convert_sync_batchnorm, revert_sync_batchnorm
from mmengine.registry import MODELS

from .conftest import batch, build_algorithm, losses_of, neck_distiller, small

NORM = 'backbone.layer4.0.bn1'


def norm_distiller() -> dict:
    """Distiller that compares what a BatchNorm layer gives on both sides."""
    norm = dict(norm=dict(type='ModuleOutputs', source=NORM))
    sides = {k: dict(from_student=v, recorder='norm') for k, v in (('preds_S', True), ('preds_T', False))}
    loss = dict(loss_norm=dict(type='mmkd.NormalizedLpLoss', p=2))
    return neck_distiller(
        student_recorders=norm, teacher_recorders=norm, distill_losses=loss, loss_forward_mappings=dict(loss_norm=sides)
    )


def test_a_recorder_follows_a_norm_layer_that_the_runner_exchanges() -> None:
    model = build_algorithm('retinanet', norm_distiller())
    before = losses_of(model.eval(), batch())['distill.loss_norm']
    for name in ('layer3', 'layer4'):
        stage = revert_sync_batchnorm(convert_sync_batchnorm(getattr(model.backbone, name)))
        setattr(model.backbone, name, stage)
    with pytest.raises(RuntimeError, match='did not run, so nothing was recorded'):
        losses_of(model.eval(), batch())
    for _ in range(2):  # the second time there is nothing to do
        model.listen_again()
        losses = losses_of(model.eval(), batch())
        assert torch.equal(losses['distill.loss_norm'], before)
    recorder = model.distiller.student_recorders.recorders['norm']
    with model.distiller.student_recorders:
        model.extract_feat(torch.zeros(1, 3, 64, 64))
    assert len(recorder.data_buffer) == 1
    assert (True, 'norm') in model.distiller.reader.watches


def test_load_from_keeps_the_students_own_renaming_of_keys() -> None:
    plain, model = MODELS.build(small('faster-rcnn')), build_algorithm('faster-rcnn', neck_distiller())
    # weights of a one-stage detector: MMDetection's two-stage detectors take its head for the proposals
    weights = {
        key.replace('rpn_head', 'bbox_head'): value + 1
        for key, value in plain.state_dict().items()
        if not key.startswith('roi_head')
    }
    expected = plain.load_state_dict(dict(weights), strict=False)
    found = model.load_state_dict(dict(weights), strict=False)
    assert not any('rpn_head' in key for key in found.missing_keys)
    assert sorted(found.missing_keys) == sorted(expected.missing_keys)
    assert torch.equal(model.rpn_head.rpn_conv.weight, plain.rpn_head.rpn_conv.weight)


def test_buffers_that_a_student_does_not_save_are_not_saved() -> None:
    student = MODELS.build(small('retinanet'))
    student.register_buffer('scratch', torch.zeros(3), persistent=False)
    model = MODELS.build(
        dict(
            type='mmkd.TeacherStudentDistill',
            architecture=student,
            teacher=MODELS.build(small('retinanet')),
            distiller=neck_distiller(),
        )
    )
    assert 'scratch' not in model.state_dict()
