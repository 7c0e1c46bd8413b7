"""Students that write into what they are built from or trained on, or run a head more often than once."""

import copy

import pytest
import torch
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS

from mmkd.engine.dry_step import step_problem
from mmkd.engine.preflight import check_model
from mmkd.models.algorithms.checkpoint_state import compare_states, load_strictly
from mmkd.models.algorithms.sample_copies import copied_samples

from .test_pairs import algorithm, deformable_detr, family, losses_of, method, total, yolov3


def detr() -> ConfigDict:
    """A Deformable DETR that can be trained."""
    cfg = deformable_detr()
    costs = [dict(type='FocalLossCost', weight=2.0), dict(type='BBoxL1Cost', weight=5.0, box_format='xywh')]
    cfg.train_cfg = ConfigDict(assigner=dict(type='HungarianAssigner', match_costs=costs))
    return cfg


def self_taught(student: ConfigDict, name: str) -> dict:
    """A self-distillation of a student by a frskd method."""
    return dict(
        type='mmkd.SelfTeacherDistill',
        architecture=student,
        self_teacher=dict(type='mmkd.ResidualBiFPNSelfTeacher', num_layers=1, norm='GN'),
        distiller=method(name),
    )


def test_a_student_that_writes_into_its_config_is_built_again_after_the_check() -> None:
    plain, model = Config(dict(model=detr())), Config(dict(model=self_taught(detr(), 'frskd')))
    for cfg in (plain, model):
        before = copy.deepcopy(cfg.model)
        assert list(check_model(cfg)) == []
        assert cfg.model == before
    MODELS.build(plain.model)


def test_the_config_of_a_student_is_left_as_it_was_by_the_algorithm() -> None:
    student = detr()
    algorithm(student, family('retinanet', channels=24), method('ssim'))
    model = MODELS.build(
        dict(type='mmkd.MultiScaleSelfDistill', architecture=student, distiller=copy.deepcopy(method('mssd')))
    )
    assert student == detr()
    assert model.architecture.bbox_head.as_two_stage is False


def two_stage(kind: str) -> ConfigDict:
    """Faster R-CNN whose sampler runs the RoI head on all candidates, to keep the hard ones."""
    cfg = family('faster-rcnn', channels=24)
    cfg.train_cfg.rcnn.sampler = dict(type=kind, num=16, pos_fraction=0.25, neg_pos_ub=-1, add_gt_as_proposals=True)
    if kind == 'ScoreHLRSampler':
        cfg.train_cfg.rcnn.sampler.update(k=0.5, bias=0.0)
        cfg.train_cfg.rcnn.update(isr=dict(k=2, bias=0), carl=dict(k=1, bias=0.2))
        cfg.roi_head.type = 'PISARoIHead'
        cfg.roi_head.bbox_head.loss_bbox = dict(type='SmoothL1Loss', beta=1.0, loss_weight=1.0)
    return cfg


@pytest.mark.parametrize('kind', ['OHEMSampler', 'ScoreHLRSampler'])
def test_logits_are_those_of_the_loss_where_the_sampler_runs_the_head_too(kind: str) -> None:
    student, teacher = two_stage(kind), family('faster-rcnn', channels=24)
    models = [algorithm(student, teacher, method(name)) for name in ('ikd_roi', 'mkd_roi')]
    models.append(MODELS.build(self_taught(student, 'frskd_roi')).train())
    for model in models:
        model.distiller.schedules = {}
        value = total(losses_of(model), 'distill.')
        assert value.isfinite() and value > 0
        value.backward()
        assert model.architecture.roi_head.bbox_head.fc_cls.weight.grad.abs().sum() > 0


def test_copied_samples_keep_the_ground_truth_of_the_originals() -> None:
    sample = demo_mm_inputs(1, [(3, 64, 64)], num_items=[2], num_classes=4, with_mask=True)['data_samples'][0]
    masks = sample.gt_instances.masks
    (copied,) = copied_samples([sample])
    assert copied.gt_instances.masks is masks and copied.metainfo['img_shape'] == sample.metainfo['img_shape']
    copied.gt_instances.masks = torch.zeros(2)
    copied.gt_instances.labels = copied.gt_instances.labels + 7
    assert sample.gt_instances.masks is masks and sample.gt_instances.labels.max() < 7
    assert copied_samples(['no sample']) == ['no sample']


def test_the_self_teacher_gets_the_ground_truth_that_the_student_got(monkeypatch: pytest.MonkeyPatch) -> None:
    model = MODELS.build(self_taught(family('retinanet', channels=24), 'frskd')).train()
    model.distiller.schedules = {}
    whole = type(model.architecture).loss

    def spoiling(network: object, inputs: torch.Tensor, samples: list) -> dict:
        losses = whole(network, inputs, samples)
        for sample in samples:
            del sample.gt_instances.bboxes
        return losses

    monkeypatch.setattr(type(model.architecture), 'loss', spoiling)
    assert total(losses_of(model), 'self_teacher.').isfinite()


@pytest.mark.parametrize(('teacher', 'fits'), [('retinanet', True), ('yolox', False), ('yolov3', False)])
def test_a_teacher_that_needs_more_padding_is_found_before_training(teacher: str, fits: bool) -> None:
    student = detr()
    student.data_preprocessor.pad_size_divisor = 1
    network = yolov3() if teacher == 'yolov3' else family(teacher, channels=24)
    problem = step_problem(algorithm(student, network, method('ikd_neck')))
    if fits:
        assert problem is None
    else:
        assert 'The teacher pads its images to a multiple of 32 px, the student to one of 1' in problem
        assert 'data_preprocessor.pad_size_divisor=32' in problem


def old_names(state: dict) -> dict:
    """What MMDetection 1 called the layers of FCOS."""
    return {key.replace('bbox_head.conv_', 'bbox_head.fcos_'): value for key, value in state.items()}


def test_a_teacher_of_an_older_release_gets_the_names_of_today() -> None:
    source, model = MODELS.build(family('fcos')), MODELS.build(family('fcos'))
    state = old_names(source.state_dict())
    assert any('fcos_cls' in key for key in state)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert compare_states(model, state) == dict(missing=[], unexpected=[], shape=[])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    load_strictly(model, dict(state_dict=state), name='old')
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in model.state_dict().items())


def test_layers_of_todays_release_are_not_renamed() -> None:
    """A layer `my_cls` beside `conv_cls`: only a state without versions would be taken for an old one."""
    source, model = MODELS.build(family('fcos')), MODELS.build(family('fcos'))
    for network in (source, model):
        network.bbox_head.my_cls = torch.nn.Conv2d(1, 1, 1)
    wrapped = torch.nn.DataParallel(source)
    load_strictly(model, wrapped.state_dict(), name='own')
    assert torch.equal(model.bbox_head.my_cls.weight, source.bbox_head.my_cls.weight)
