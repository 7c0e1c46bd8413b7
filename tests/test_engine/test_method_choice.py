import pytest
from mmengine.config import Config

from mmkd.engine.launch import load_config
from mmkd.engine.method_choice import head_kind, method_algorithm, method_file, same_heads, wider_head
from mmkd.testing.methods import config_root
from mmkd.testing.toy_detectors import FAMILIES, toy_detector

DENSE = sorted(set(FAMILIES) - {'faster-rcnn'})


@pytest.mark.parametrize('family', DENSE)
def test_dense_heads_get_the_dense_files(family):
    student, teacher = toy_detector(family, channels=16), toy_detector(family, width=32)
    assert [method_file(name, student, teacher) for name in ('ikd', 'mkd', 'frskd')] == ['ikd', 'mkd', 'frskd_dense']


def test_two_stage_detectors_get_the_roi_files():
    student, teacher = toy_detector('faster-rcnn'), toy_detector('faster-rcnn', width=32)
    assert [method_file(name, student, teacher) for name in ('ikd', 'mkd', 'frskd')] == [
        'ikd_roi',
        'mkd_roi',
        'frskd_roi',
    ]


@pytest.mark.parametrize('teacher', ['gfl', 'fcos', 'faster-rcnn'])
def test_pairs_with_other_heads_compare_the_necks_alone(teacher):
    student, other = toy_detector('retinanet'), toy_detector(teacher)
    assert [method_file(name, student, other) for name in ('ikd', 'mkd')] == ['ikd_neck', 'mkd_neck']
    assert method_file('frskd', student, other) == 'frskd_dense'  # its teacher is grown on the student


@pytest.mark.parametrize(
    'change',
    [
        dict(num_classes=9),
        dict(anchor_generator=dict(type='AnchorGenerator', ratios=[1.0], octave_base_scale=2, scales_per_octave=3)),
    ],
)
def test_heads_with_other_classes_or_anchors_are_not_compared(change):
    student, teacher = toy_detector('retinanet'), toy_detector('retinanet')
    assert same_heads(student, teacher)
    teacher.bbox_head.update(change)
    assert not same_heads(student, teacher)
    assert method_file('ikd', student, teacher) == 'ikd_neck'


def test_a_softmax_head_is_not_dense():
    model = toy_detector('retinanet')
    model.bbox_head.loss_cls = dict(type='CrossEntropyLoss', use_sigmoid=False)
    assert head_kind(model) == 'other'
    assert method_file('frskd', model) == 'frskd'


@pytest.mark.parametrize(
    'name', ['yolof/yolof_r50-c5_8xb8-1x_coco', 'tood/tood_r50_fpn_1x_coco', 'paa/paa_r50_fpn_1x_coco']
)
def test_heads_whose_assigned_classes_cannot_be_read_get_the_neck_files(name):
    model = load_config(f'mmdet::{name}.py').model
    assert head_kind(model) == 'other'
    assert [method_file(method, model, model) for method in ('ikd', 'mkd', 'frskd')] == [
        'ikd_neck',
        'mkd_neck',
        'frskd',
    ]


def test_a_cascade_has_no_single_head():
    model = toy_detector('faster-rcnn')
    model.roi_head.bbox_head = [model.roi_head.bbox_head] * 3
    assert head_kind(model) == 'other'


def test_a_head_nobody_knows_is_no_mistake_here():
    assert head_kind(dict(type='X', bbox_head=dict(type='NoSuchHead'))) == 'other'
    assert head_kind(dict(type='X')) == 'other'


def test_stems_and_files_are_taken_as_they_are():
    student = toy_detector('retinanet')
    assert [method_file(name, student) for name in ('ssim', 'frskd_fit', 'ikd_roi', 'frskd.py')] == [
        *('ssim', 'frskd_fit', 'ikd_roi'),
        'frskd',
    ]


def test_a_config_read_from_a_file_is_the_same_head(tmp_path):
    model = toy_detector('fcos')
    Config(dict(model=model.to_dict())).dump(tmp_path / 'x.py')
    assert same_heads(model, Config.fromfile(tmp_path / 'x.py').model)


# One hand-written leaf a head and method: the choice must end at the file that its author took.
@pytest.mark.parametrize(
    'name',
    [
        'ikd/ikd_faster-rcnn_r50_faster-rcnn_r18_fpn_1x_kitti.py',
        'ikd/ikd_gfl_r101_gfl_r50_fpn_1x_coco.py',
        'mkd/mkd_yolox_s_yolox_tiny_8xb8-100e_kitti.py',
        'frskd/frskd_resnet-18_b128-200e_cifar100.py',
        'frskd/frskd_yolox_s_8xb8-100e_kitti.py',
    ],
)
def test_shipped_configs_agree_with_the_choice(name):
    method = name.split('/')[0]
    cfg = load_config(str(config_root() / name))
    teacher = None if method == 'frskd' else load_config(cfg.model.teacher).model
    stem = method_file(method, cfg.model.architecture, teacher)
    chosen = Config.fromfile(config_root() / '_base_' / 'methods' / f'{stem}.py').distiller
    assert chosen.distill_losses.keys() == cfg.model.distiller.distill_losses.keys()
    sources = {one.source for one in chosen.student_recorders.values()}
    assert sources == {one.source for one in cfg.model.distiller.student_recorders.values()}


@pytest.mark.parametrize(
    ('width', 'self_teacher'), [(16, 64), (64, 256), (96, 192), (128, 256), (129, None), (256, None), (512, None)]
)
def test_a_narrow_head_is_made_wider_for_the_self_teacher(width, self_teacher):
    head = dict(bbox_head=dict(type='RetinaHead', feat_channels=width))
    assert wider_head(head) == ({} if self_teacher is None else {'bbox_head': {'feat_channels': self_teacher}})


def test_heads_of_other_kinds_are_left_as_they_are():
    assert wider_head(dict(bbox_head=dict(type='RetinaHead'))) == {}
    assert wider_head(dict(type='ImageClassifier', head=dict(type='LinearClsHead', in_channels=64))) == {}
    assert wider_head(dict(roi_head=dict(bbox_head=[dict(fc_out_channels=64)]))) == {}
    assert wider_head(dict(roi_head=dict(bbox_head=dict(fc_out_channels=64)))) == {
        'roi_head': {'bbox_head': {'fc_out_channels': 256}}
    }


def test_only_a_self_teacher_gets_a_wider_head():
    student = toy_detector('retinanet', channels=16)
    assert method_algorithm('frskd_dense', student)['changes'] == {'bbox_head': {'feat_channels': 64}}
    assert 'changes' not in method_algorithm('mssd', student)
    assert 'changes' not in method_algorithm('ikd', student)
    method_algorithm('frskd_dense', student)['self_teacher']['norm'] = 'BN'
    assert method_algorithm('frskd_dense', student)['self_teacher']['norm'] == 'GN'
