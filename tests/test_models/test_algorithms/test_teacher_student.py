"""The invariants of a training step (DESIGN section 2) on real MMDetection detectors, in small."""

import copy

import pytest
import torch
from mmengine.logging import MessageHub
from mmengine.registry import MODELS

from mmkd.models.algorithms.student_targets import StudentTargets

from .conftest import FAMILIES, batch, build_algorithm, build_teacher, head_distiller, losses_of, neck_distiller, small


def ssim(weight: float = 1.0) -> dict:
    return dict(type='mmkd.SSIMLoss', data_range=1.0, loss_weight=weight)


def adapted(distiller: dict) -> dict:
    """The distiller with a 1x1 connector on every level of the student."""
    distiller['connectors'] = dict(adapt=dict(type='mmkd.PyramidConnector', connector=dict(type='mmkd.ConvConnector')))
    distiller['loss_forward_mappings']['loss_feat']['preds_S']['connector'] = 'adapt'
    return distiller


OFF = {
    'by its weight': neck_distiller(ssim(0.0)),
    'by its schedule': adapted(neck_distiller(ssim(), schedules=dict(loss_feat=dict(begin=100)))),
}


@pytest.mark.parametrize('off', OFF)
@pytest.mark.parametrize('family', FAMILIES)
def test_weight_zero_is_plain_mmdetection_to_the_last_bit(family, off, train_steps):
    torch.manual_seed(0)
    plain = MODELS.build(small(family))
    plain_losses, plain_grads = train_steps(plain)
    distilled = build_algorithm(family, copy.deepcopy(OFF[off]))
    losses, grads = train_steps(distilled)
    assert losses == plain_losses
    assert all(torch.equal(grads[name], grad) for name, grad in plain_grads.items())
    states = plain.state_dict(), distilled.state_dict()
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize('family', FAMILIES)
def test_a_student_equal_to_its_teacher_has_no_distillation_loss(family):
    teacher = build_teacher(family)
    model = build_algorithm(family, neck_distiller(ssim()), teacher)
    model.architecture.load_state_dict(teacher.state_dict())
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()
    losses = losses_of(model, batch())
    distilled = {name: float(value.detach()) for name, value in losses.items() if name.startswith('distill.')}
    assert len(distilled) >= 3
    assert max(distilled.values()) < 1e-5


@pytest.mark.parametrize('family', FAMILIES)
def test_training_leaves_the_whole_state_of_the_teacher_unchanged(family, train_steps):
    model = build_algorithm(family, neck_distiller(ssim()))
    before = copy.deepcopy(model.teacher.state_dict())
    train_steps(model)
    after = model.teacher.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(module.training for module in model.teacher.modules())
    assert not any(p.requires_grad or p.grad is not None for p in model.teacher.parameters())


def test_the_distillation_reaches_the_student_and_its_connectors():
    distiller = adapted(neck_distiller(ssim()))
    model = build_algorithm('retinanet', distiller, build_teacher('retinanet', channels=24))
    model.init_weights()
    losses = losses_of(model, batch())
    sum(value for name, value in losses.items() if name.startswith('distill.')).backward()
    assert model.backbone.conv1.weight.grad.abs().sum() > 0
    assert all(p.grad.abs().sum() > 0 for n, p in model.named_parameters() if 'distiller' in n and 'weight' in n)
    assert model.bbox_head.retina_cls.weight.grad is None


def test_names_are_those_of_the_plain_student():
    model = build_algorithm('retinanet', neck_distiller(ssim()))
    names = {name for name, _ in model.named_parameters()}
    assert names == {name for name, _ in model.architecture.named_parameters()}
    assert model.bbox_head is model.architecture.bbox_head
    assert model.with_neck
    with pytest.raises(AttributeError, match='detector'):
        _ = model.detector


def test_losses_are_named_by_side_method_and_level():
    model = build_algorithm('retinanet', neck_distiller(ssim()))
    model.init_weights()
    names = set(losses_of(model, batch()))
    assert names == {'student.loss_cls', 'student.loss_bbox'} | {f'distill.loss_feat_p{i}' for i in range(3, 8)}


def test_the_teacher_stops_behind_the_last_recorded_layer():
    model = build_algorithm('faster-rcnn', neck_distiller(ssim()))
    calls = []
    for name in ('rpn_head', 'roi_head'):
        getattr(model.teacher, name).register_forward_hook(lambda *args, name=name: calls.append(name))
    model.teacher.neck.register_forward_hook(lambda *args: calls.append('behind the neck'))
    model.init_weights()
    losses_of(model, batch())
    assert calls == []


def test_the_teacher_stops_inside_the_backbone():
    distiller = neck_distiller()
    for side in ('student_recorders', 'teacher_recorders'):
        distiller[side] = dict(neck=dict(type='ModuleOutputs', source='backbone.layer2'))
    distiller['distill_losses'] = dict(loss_feat=ssim())
    model = build_algorithm('retinanet', distiller)
    calls = []
    model.teacher.backbone.layer3.register_forward_hook(lambda *args: calls.append(1))
    model.init_weights()
    assert 'distill.loss_feat' in losses_of(model, batch())
    assert not calls


def test_the_teacher_is_idle_while_every_weight_is_zero():
    distiller = neck_distiller(ssim(), schedules=dict(loss_feat=dict(begin=2, by_epoch=False)))
    model = build_algorithm('retinanet', distiller)
    model.init_weights()
    calls = []
    model.teacher.backbone.register_forward_hook(lambda *args: calls.append(1))
    hub = MessageHub.get_instance('idle')
    for iteration, expected in ((0, 0), (1, 0), (2, 1), (3, 2)):
        hub.update_info('iter', iteration)
        losses = losses_of(model, batch())
        assert len(calls) == expected
        assert ('distill.loss_feat_p3' in losses) == (iteration >= 2)


def test_a_loss_that_is_off_keeps_its_connectors_in_the_graph():
    distiller = copy.deepcopy(OFF['by its schedule'])
    model = build_algorithm('retinanet', distiller)
    model.init_weights()
    total, _ = model.parse_losses(losses_of(model, batch()))
    total.backward()
    connectors = [p for n, p in model.named_parameters() if n.startswith('distiller.')]
    assert connectors and all(p.grad is not None and not p.grad.any() for p in connectors)
    assert {id(p) for p in model.distiller.idle_parameters()} == {id(p) for p in model.distiller.parameters()}


def test_recorders_of_the_teachers_functions_do_not_hear_the_student():
    """MMRazor replaces the method for everyone while its recorder is open."""
    method = dict(type='MethodOutputs', source='mmdet.models.necks.fpn.FPN.forward')
    neck = dict(type='ModuleOutputs', source='neck')
    model = build_algorithm('retinanet', neck_distiller(teacher_recorders=dict(neck=neck, method=method)))
    compute, heard = model.distiller.compute_distill_losses, []

    def listen(reserved):
        heard.extend(model.distiller.teacher_recorders.get_recorder('method').data_buffer)
        return compute(reserved)

    model.distiller.compute_distill_losses = listen
    losses_of(model, batch())
    assert len(heard) == 1 and not heard[0][0].requires_grad


def test_records_are_released_after_the_step():
    model = build_algorithm('retinanet', neck_distiller(ssim()))
    model.init_weights()
    losses_of(model, batch())
    for side in (True, False):
        assert all(not r.data_buffer for r in model.distiller.recorders(side).recorders.values())


def test_a_copy_shares_the_teacher_and_copies_the_student():
    model = build_algorithm('retinanet', neck_distiller(ssim()))
    copied = copy.deepcopy(model)
    assert copied.teacher is model.teacher
    assert copied.backbone is copied.architecture.backbone
    assert copied.backbone is not model.backbone


def test_moving_a_copy_leaves_the_teacher_where_it_is():
    model = build_algorithm('retinanet', neck_distiller(ssim()))
    copied = copy.deepcopy(copy.deepcopy(model)).double()  # EMAHook(device='cpu') moves its copy so
    assert copied.backbone.conv1.weight.dtype == torch.float64
    assert model.teacher.backbone.conv1.weight.dtype == torch.float32
    model.double()
    assert model.teacher.backbone.conv1.weight.dtype == torch.float64


def test_a_built_teacher_takes_the_checkpoint_that_is_given(tmp_path):
    weights = build_teacher('retinanet').state_dict()
    torch.save(dict(state_dict={key: value + 1 for key, value in weights.items()}), tmp_path / 'teacher.pth')
    built = build_teacher('retinanet')
    model = build_algorithm('retinanet', neck_distiller(ssim()), built, teacher_ckpt=str(tmp_path / 'teacher.pth'))
    model.init_weights()
    assert torch.equal(model.teacher.backbone.conv1.weight, weights['backbone.conv1.weight'] + 1)


def test_a_plain_students_checkpoint_loads_strictly():
    model = build_algorithm('retinanet', neck_distiller(ssim()))
    torch.manual_seed(3)
    plain = MODELS.build(small('retinanet'))
    model.load_state_dict(plain.state_dict(), strict=True)
    assert torch.equal(model.backbone.conv1.weight, plain.backbone.conv1.weight)


def test_what_is_saved_apart_comes_back():
    distiller = adapted(neck_distiller(ssim()))
    model = build_algorithm('retinanet', distiller)
    state = model.distiller.saved_state()
    assert state and not any('distiller' in name for name in model.state_dict())
    with torch.no_grad():
        for parameter in model.distiller.parameters():
            parameter.zero_()
    model.distiller.load_saved_state(state)
    assert all(torch.equal(value, state[name]) for name, value in model.distiller.saved_state().items())


def test_pyramids_of_different_strides_meet_by_stride():
    distiller = neck_distiller(ssim())
    model = build_algorithm('retinanet', distiller, build_teacher('faster-rcnn'))
    model.init_weights()
    names = {name for name in losses_of(model, batch()) if name.startswith('distill.')}
    assert names == {f'distill.loss_feat_p{i}' for i in (3, 4, 5, 6)}


def test_the_teachers_roi_head_runs_on_the_students_proposals():
    distiller = head_distiller('roi_head.bbox_head', dict(type='mmrazor.KLDivergence'))
    model = build_algorithm('faster-rcnn', distiller)
    model.init_weights()
    seen = {}
    for name, network in (('student', model.architecture), ('teacher', model.teacher)):
        extractor = network.roi_head.bbox_roi_extractor
        extractor.register_forward_hook(lambda m, inputs, out, name=name: seen.update({name: inputs[1].detach()}))
    losses = losses_of(model, batch())
    assert torch.equal(seen['student'], seen['teacher'])
    assert losses['distill.loss_kd'] > 0
    losses['distill.loss_kd'].backward()
    assert model.roi_head.bbox_head.fc_cls.weight.grad.abs().sum() > 0


@pytest.mark.parametrize('family', FAMILIES)
def test_labels_come_in_the_order_of_the_flattened_scores(family):
    model = build_algorithm(family, neck_distiller())
    model.init_weights()
    targets = StudentTargets(model.architecture, {'rois', 'labels'} if family == 'faster-rcnn' else {'labels'})
    data = batch()
    with targets:
        losses_of(model.architecture, data)
    labels = targets.records(2)['labels']
    if family == 'faster-rcnn':
        rois = targets.records(2)['rois']
        assert len(labels) == len(rois)
    else:
        inputs = model.data_preprocessor(copy.deepcopy(data), True)['inputs']
        with torch.no_grad():
            scores = model.architecture(inputs, None, mode='tensor')[0]
        anchors = scores[0].shape[1] // 4
        assert len(labels) == sum(s.shape[0] * s.shape[2] * s.shape[3] * anchors for s in scores)
    assert int(labels.min()) >= 0 and int(labels.max()) == 4
    assert 0 < int((labels < 4).sum()) < len(labels)


def test_the_teacher_sees_the_same_images_in_its_own_normalisation():
    teacher = build_teacher('retinanet')
    own = dict(type='DetDataPreprocessor', mean=[103.5, 116.3, 123.7], std=[1.0, 2.0, 3.0], bgr_to_rgb=False)
    other = MODELS.build(dict(own, pad_size_divisor=32))
    student_side = teacher.data_preprocessor
    teacher.data_preprocessor = other
    model = build_algorithm('retinanet', neck_distiller(ssim()), teacher)
    data = batch(size=(120, 150))
    seen = []
    model.teacher.backbone.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0].clone()))
    model.init_weights()
    losses_of(model, data)
    expected = other(copy.deepcopy(data), True)['inputs']
    assert torch.allclose(seen[0], expected, atol=1e-3)
    assert not torch.allclose(student_side(copy.deepcopy(data), True)['inputs'], expected, atol=1e-1)


def test_inherit_starts_the_student_from_the_teachers_neck_and_head():
    model = build_algorithm('retinanet', neck_distiller(ssim()), inherit=('neck', 'bbox_head'))
    model.init_weights()
    own, other = model.state_dict(), model.teacher.state_dict()
    assert all(torch.equal(own[k], other[k]) for k in own if k.startswith(('neck.', 'bbox_head.')))
    assert not torch.equal(own['backbone.conv1.weight'], other['backbone.conv1.weight'])


def test_inherit_refuses_an_unknown_part():
    model = build_algorithm('retinanet', neck_distiller(ssim()), inherit='neckk')
    with pytest.raises(ValueError, match="no part 'neckk'.*neck"):
        model.init_weights()


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_a_step_works_in_mixed_precision(dtype):
    model = build_algorithm('gfl', neck_distiller(ssim()))
    model.init_weights()
    with torch.autocast('cpu', dtype=dtype):
        losses = losses_of(model, batch())
    total, _ = model.parse_losses(losses)
    total.backward()
    assert losses['distill.loss_feat_p3'].dtype == torch.float32
    assert torch.isfinite(model.backbone.conv1.weight.grad).all()


def test_activation_checkpointing_changes_nothing():
    totals = []
    for with_cp in (False, True):
        teacher = build_teacher('retinanet')
        torch.manual_seed(0)
        cfg = small('retinanet')
        cfg.backbone.with_cp = with_cp
        model = MODELS.build(
            dict(
                type='mmkd.TeacherStudentDistill',
                architecture=cfg,
                teacher=teacher,
                distiller=neck_distiller(ssim()),
            )
        )
        model.init_weights()
        total, _ = model.parse_losses(losses_of(model, batch()))
        total.backward()
        totals.append((float(total.detach()), model.backbone.layer1[0].conv1.weight.grad))
    assert totals[0][0] == totals[1][0]
    assert torch.allclose(totals[0][1], totals[1][1], atol=1e-6)


def test_refuses_a_record_that_a_later_layer_overwrites():
    distiller = neck_distiller()
    for side in ('student_recorders', 'teacher_recorders'):
        distiller[side] = dict(neck=dict(type='ModuleOutputs', source='backbone.layer2.0.bn2'))
    distiller['distill_losses'] = dict(loss_feat=ssim())
    with pytest.raises(RuntimeError, match="'backbone.layer2.0.bn2' was overwritten in place"):
        build_algorithm('retinanet', distiller)


def test_refuses_channels_that_cannot_match():
    with pytest.raises(ValueError, match=r'loss_feat does not fit.*student.*16.*teacher.*24'):
        build_algorithm('retinanet', neck_distiller(ssim()), build_teacher('retinanet', channels=24))


def test_refuses_an_unknown_layer_and_names_the_nearest():
    distiller = neck_distiller(ssim())
    distiller['student_recorders']['neck']['source'] = 'neck.fpn_conv.0'
    with pytest.raises(ValueError, match=r"student RetinaNet has no layer 'neck.fpn_conv.0'.*neck.fpn_convs.0"):
        build_algorithm('retinanet', distiller)


def test_refuses_a_container_that_is_never_called():
    distiller = neck_distiller(ssim())
    distiller['teacher_recorders']['neck']['source'] = 'neck.fpn_convs'
    with pytest.raises(ValueError, match='never run in its forward'):
        build_algorithm('retinanet', distiller)
