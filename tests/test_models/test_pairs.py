"""ikd and mkd on heterogeneous pairs of real MMDetection detectors, made small: one training step each.

A pair is student <- teacher. The shipped method files are used as they are.
"""

import argparse
import copy
from pathlib import Path

import pytest
import torch
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.registry import MODELS
from torch import nn

from mmkd.testing.toy_detectors import toy_detector

METHODS = Path(__file__).parents[2] / 'configs' / '_base_' / 'methods'
SMALL = dict(width=8, channels=16, convs=1)


def family(name: str, **changes: int) -> ConfigDict:
    return toy_detector(name, **(SMALL | changes))


def swin() -> ConfigDict:
    """Faster R-CNN with a Swin transformer, strides 4 to 64."""
    cfg = family('faster-rcnn', channels=24)
    cfg.backbone = ConfigDict(
        type='SwinTransformer', embed_dims=8, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8), window_size=7
    )
    cfg.neck.in_channels = [8, 16, 32, 64]
    return cfg


def resnext() -> ConfigDict:
    """Faster R-CNN with a ResNeXt."""
    cfg = family('faster-rcnn', channels=24)
    cfg.backbone.update(type='ResNeXt', depth=50, groups=2, base_width=4, base_channels=8)
    cfg.neck.in_channels = [32, 64, 128, 256]
    return cfg


def cascade() -> ConfigDict:
    """Cascade R-CNN: an RoI head of several stages."""
    cfg = family('faster-rcnn', channels=24)
    box, rcnn = cfg.roi_head.bbox_head, cfg.train_cfg.rcnn
    cfg.roi_head.update(
        type='CascadeRoIHead', num_stages=2, stage_loss_weights=[1, 0.5], bbox_head=[copy.deepcopy(box) for _ in '12']
    )
    cfg.train_cfg.rcnn = [copy.deepcopy(rcnn) for _ in '12']
    cfg.type = 'CascadeRCNN'
    return cfg


def yolov3() -> ConfigDict:
    """YOLOv3: three levels, the coarsest first, each with channels of its own."""
    return ConfigDict(
        type='YOLOV3',
        data_preprocessor=dict(type='DetDataPreprocessor', mean=[0] * 3, std=[255.0] * 3, pad_size_divisor=32),
        backbone=dict(type='Darknet', depth=53, out_indices=(3, 4, 5)),
        neck=dict(type='YOLOV3Neck', num_scales=3, in_channels=[1024, 512, 256], out_channels=[32, 24, 16]),
        bbox_head=dict(
            type='YOLOV3Head',
            num_classes=4,
            in_channels=[32, 24, 16],
            out_channels=[32, 24, 16],
            anchor_generator=dict(
                type='YOLOAnchorGenerator', base_sizes=[[(90, 80)], [(40, 45)], [(12, 20)]], strides=[32, 16, 8]
            ),
            bbox_coder=dict(type='YOLOBBoxCoder'),
            featmap_strides=[32, 16, 8],
        ),
    )


def deformable_detr() -> ConfigDict:
    """Deformable DETR: a channel mapper with strides 8 to 64 for its neck."""
    layer = dict(self_attn_cfg=dict(embed_dims=24, num_heads=2), ffn_cfg=dict(embed_dims=24, feedforward_channels=32))
    cross = dict(cross_attn_cfg=dict(embed_dims=24, num_heads=2))
    return ConfigDict(
        type='DeformableDETR',
        num_queries=10,
        num_feature_levels=4,
        data_preprocessor=family('retinanet').data_preprocessor,
        backbone=dict(family('retinanet').backbone, out_indices=(1, 2, 3)),
        neck=dict(
            type='ChannelMapper',
            in_channels=[16, 32, 64],
            kernel_size=1,
            out_channels=24,
            norm_cfg=dict(type='GN', num_groups=4),
            num_outs=4,
        ),
        encoder=dict(num_layers=1, layer_cfg=layer),
        decoder=dict(num_layers=1, return_intermediate=True, layer_cfg=layer | cross, post_norm_cfg=None),
        positional_encoding=dict(num_feats=12, normalize=True, offset=-0.5),
        bbox_head=dict(
            type='DeformableDETRHead',
            num_classes=4,
            embed_dims=24,
            sync_cls_avg_factor=True,
            loss_cls=dict(type='FocalLoss', use_sigmoid=True),
        ),
    )


def reppoints() -> ConfigDict:
    """RepPoints: neither anchors nor points with one box each."""
    cfg = family('retinanet', channels=24)
    cfg.type = 'RepPointsDetector'
    cfg.bbox_head = ConfigDict(
        type='RepPointsHead', num_classes=4, in_channels=24, feat_channels=24, point_feat_channels=24, stacked_convs=1
    )
    stage = dict(allowed_border=-1, pos_weight=-1, debug=False)
    cfg.train_cfg = ConfigDict(
        init=dict(stage, assigner=dict(type='PointAssigner', scale=4, pos_num=1)),
        refine=dict(stage, assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0)),
    )
    return cfg


# name: (student, teacher)
PAIRS = {
    'faster-rcnn from retinanet: one stage teaches two': (family('faster-rcnn'), family('retinanet', channels=24)),
    'retinanet from faster-rcnn with swin': (family('retinanet'), swin()),
    'retinanet from faster-rcnn with resnext': (family('retinanet'), resnext()),
    'faster-rcnn from cascade-rcnn': (family('faster-rcnn'), cascade()),
    'yolox from retinanet: three levels learn from five': (family('yolox'), family('retinanet', channels=24)),
    'retinanet from yolox: five levels learn from three': (family('retinanet'), family('yolox', width=16, channels=32)),
    'retinanet from yolov3: the coarsest level first': (family('retinanet'), yolov3()),
    'gfl from deformable detr': (family('gfl'), deformable_detr()),
    'fcos from reppoints': (family('fcos'), reppoints()),
    'fcos from atss with wider layers': (family('fcos'), family('atss', width=16, channels=32)),
}


def method(name: str) -> ConfigDict:
    return Config.fromfile(METHODS / f'{name}.py').distiller


def algorithm(student: ConfigDict, teacher: ConfigDict, distiller: ConfigDict) -> nn.Module:
    network = MODELS.build(copy.deepcopy(teacher))
    network.init_weights()
    model = MODELS.build(
        dict(
            type='mmkd.TeacherStudentDistill',
            architecture=copy.deepcopy(student),
            teacher=network,
            distiller=copy.deepcopy(distiller),
        )
    )
    return model.train()


def losses_of(model: nn.Module) -> dict:
    heads = [getattr(model.architecture, 'bbox_head', None), getattr(model.architecture, 'roi_head', None)]
    classes = next(getattr(head, 'bbox_head', head).num_classes for head in heads if head is not None)
    data = demo_mm_inputs(2, [(3, 96, 160), (3, 128, 128)], num_items=[2, 3], num_classes=4)
    for sample in data['data_samples']:
        sample.gt_instances.labels %= classes
    return model(**model.data_preprocessor(data, True), mode='loss')


def total(losses: dict, prefix: str) -> torch.Tensor:
    values = [v if isinstance(v, torch.Tensor) else sum(v) for k, v in losses.items() if k.startswith(prefix)]
    return sum(value.sum() for value in values)


def check_step(model: nn.Module) -> dict:
    """One step: finite, the distillation alone reaches student and connectors, and nothing reaches the teacher."""
    losses = losses_of(model)
    value = total(losses, 'distill.')
    assert value.isfinite()
    assert value > 0
    value.backward()
    first = next(p for p in model.architecture.backbone.parameters() if p.requires_grad)
    assert first.grad.isfinite().all()
    assert first.grad.abs().max() > 0
    silent = [name for name, p in model.distiller.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert silent == []
    assert all(p.grad is None for p in model.teacher.parameters())
    return losses


@pytest.mark.parametrize('name', ['ikd_neck', 'mkd_neck'])
@pytest.mark.parametrize('pair', PAIRS)
def test_a_heterogeneous_pair_takes_a_step(pair: str, name: str) -> None:
    losses = check_step(algorithm(*PAIRS[pair], method(name)))
    expected = {'ikd_neck': ('feature', 'align'), 'mkd_neck': ('relation', 'attention', 'guide', 'explore')}[name]
    for part in expected:
        assert any(part in key for key in losses), part


@pytest.mark.parametrize('name', ['ikd', 'mkd'])
@pytest.mark.parametrize('kind', ['retinanet', 'gfl', 'fcos', 'yolox', 'atss'])
def test_dense_heads_of_one_kind_distil_their_logits(kind: str, name: str) -> None:
    model = algorithm(family(kind), family(kind, width=16, channels=24), method(name))
    check_step(model)
    model.zero_grad()
    next(value for key, value in losses_of(model).items() if 'logit' in key or 'soft' in key).backward()
    head = [p.grad for p in model.architecture.bbox_head.parameters() if p.grad is not None]
    assert max(grad.abs().max() for grad in head) > 0


@pytest.mark.parametrize('name', ['ikd', 'mkd'])
def test_gfl_learns_logits_from_atss_and_a_head_of_one_class_from_its_like(name: str) -> None:
    check_step(algorithm(family('gfl'), family('atss', channels=24), method(name)))
    check_step(algorithm(family('fcos', num_classes=1), family('fcos', num_classes=1, channels=24), method(name)))


@pytest.mark.parametrize('name', ['ikd_roi', 'mkd_roi'])
@pytest.mark.parametrize('classes', [4, 1])
def test_two_stage_heads_distil_their_logits_on_the_students_proposals(name: str, classes: int) -> None:
    sizes = []
    model = algorithm(
        family('faster-rcnn', num_classes=classes),
        family('faster-rcnn', num_classes=classes, channels=24),
        method(name),
    )
    for network in (model.architecture, model.teacher):
        network.roi_head.bbox_head.register_forward_hook(lambda *args: sizes.append(tuple(args[-1][0].shape)))
    check_step(model)
    assert sizes == [sizes[0]] * 2
    assert sizes[0][1] == classes + 1


@pytest.mark.parametrize(('name', 'off'), [('ikd', 'loss_ikd_logit'), ('mkd', 'loss_mkd_soft')])
def test_logits_of_weight_zero_do_not_run_the_teachers_head(name: str, off: str) -> None:
    distiller = method(name)
    distiller.distill_losses[off].loss_weight = 0.0
    model = algorithm(family('retinanet'), family('retinanet', channels=24), distiller)
    runs = []
    model.teacher.bbox_head.register_forward_hook(lambda *args: runs.append(1))
    losses = check_step(model)
    assert losses[f'distill.{off}'].item() == 0
    assert runs == []


def test_a_strategy_of_weight_zero_builds_no_connectors_and_leaves_the_others_unchanged() -> None:
    def build(off: tuple[str, ...]) -> nn.Module:
        distiller = method('mkd_neck')
        for loss in off:
            part = distiller.distill_losses[loss]
            part.get('loss', part).loss_weight = 0.0
        return algorithm(family('retinanet'), family('retinanet', channels=24), distiller)

    whole, reduced = build(()), build(('loss_mkd_relation', 'loss_mkd_explore'))
    assert sorted(whole.distiller.connectors) == [
        'explore_student',
        'explore_teacher',
        'guide_student',
        'guide_teacher',
        'relate',
    ]
    assert sorted(reduced.distiller.connectors) == ['guide_student', 'guide_teacher']
    assert not any(p.requires_grad for p in build(tuple(method('mkd_neck').distill_losses)).distiller.parameters())


def grid_rows() -> list[tuple[str, str]]:
    """Every line of the ablation grids in the READMEs."""
    folder = METHODS.parents[1]
    return [
        (name, line.removeprefix('--cfg-options '))
        for name in ('ikd', 'mkd')
        for line in (folder / name / 'README.md').read_text().splitlines()
        if line.startswith('--cfg-options')
    ]


@pytest.mark.parametrize(('name', 'options'), grid_rows())
def test_every_row_of_the_ablation_grids_changes_the_config_and_takes_a_step(name: str, options: str) -> None:
    leaf = METHODS.parents[1] / name / f'{name}_retinanet_r101_retinanet_r50_fpn_1x_coco.py'
    cfg = Config.fromfile(leaf)
    before = copy.deepcopy(cfg.model.distiller)
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    cfg.merge_from_dict(parser.parse_args(['--cfg-options', *options.split()]).cfg_options)
    assert cfg.model.distiller != before
    check_step(algorithm(family('retinanet'), family('retinanet', channels=24), cfg.model.distiller))


def test_a_teacher_that_equals_the_student_gives_zero() -> None:
    """Without connectors and with frozen BatchNorm: attention maps, relations, soft targets, decoupled logits."""
    neck = dict(preds_S=dict(from_student=True, recorder='neck'), preds_T=dict(from_student=False, recorder='neck'))
    head = {
        key: dict(from_student=side, recorder='head', data_idx=0)
        for key, side in (('preds_S', True), ('preds_T', False))
    }
    recorders = dict(
        neck=dict(type='ModuleOutputs', source='neck'), head=dict(type='ModuleOutputs', source='bbox_head')
    )
    distiller = ConfigDict(
        type='mmkd.DetectionDistiller',
        student_recorders=recorders,
        teacher_recorders=copy.deepcopy(recorders),
        distill_losses=dict(
            loss_at=dict(type='mmkd.PyramidLoss', loss=dict(type='mmkd.AttentionMapLoss')),
            loss_fsp=dict(type='mmkd.FSPLoss', relative=True),
            loss_soft=dict(type='mmkd.SoftTargetLoss', mode='sigmoid', background_weight=1.0),
            loss_logit=dict(type='mmkd.DecoupledLogitLoss', mode='sigmoid', background_weight=1.0),
        ),
        loss_forward_mappings=dict(
            loss_at=neck,
            loss_fsp=neck,
            loss_soft=dict(head, labels=dict(recorder='labels')),
            loss_logit=dict(head, labels=dict(recorder='labels')),
        ),
    )
    detector = family('retinanet')
    detector.backbone.norm_eval = True
    model = algorithm(detector, detector, distiller)
    assert total(losses_of(model), 'distill.') > 0
    model.architecture.load_state_dict(model.teacher.state_dict())
    losses = losses_of(model)
    assert total(losses, 'student.') > 0
    assert total(losses, 'distill.').abs() < 1e-9
