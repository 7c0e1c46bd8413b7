"""Which heads' assigned classes can be read, and that what is read is right."""

import copy
from types import SimpleNamespace

import pytest
import torch
from mmdet.models import dense_heads
from mmdet.registry import MODELS

from mmkd.models.algorithms.student_targets import StudentTargets, label_reader

from .conftest import batch, losses_of, small

KNOWN = {
    *('RetinaHead', 'RetinaSepBNHead', 'AnchorHead', 'ATSSHead', 'GFLHead', 'RTMDetHead', 'RTMDetSepBNHead'),
    *('FCOSHead', 'NASFCOSHead', 'YOLOXHead'),
}


def test_only_heads_that_were_looked_at_are_read():
    """The others have labels in another place or order (YOLOF, PAA, LAD), no logits (TOOD), or never ask (FSAF)."""
    heads = [getattr(dense_heads, name) for name in dense_heads.__all__]
    assert {head.__name__ for head in heads if label_reader(head) is not None} == KNOWN


def rtmdet() -> dict:
    cfg = small('gfl')
    cfg.bbox_head = dict(
        type='RTMDetHead',
        num_classes=4,
        in_channels=16,
        stacked_convs=1,
        feat_channels=16,
        norm_cfg=dict(type='BN'),
        anchor_generator=dict(type='MlvlPointGenerator', offset=0, strides=[8, 16, 32, 64, 128]),
        bbox_coder=dict(type='DistancePointBBoxCoder'),
        loss_cls=dict(type='QualityFocalLoss', use_sigmoid=True, beta=2.0, loss_weight=1.0),
        loss_bbox=dict(type='GIoULoss', loss_weight=2.0),
        with_objectness=False,
    )
    cfg.train_cfg = dict(
        assigner=dict(type='DynamicSoftLabelAssigner', topk=13), allowed_border=-1, pos_weight=-1, debug=False
    )
    return cfg


@pytest.mark.parametrize('family', ['rtmdet', 'fcos'])
def test_the_point_of_a_class_lies_in_a_box(family):
    torch.manual_seed(0)
    model = MODELS.build(rtmdet() if family == 'rtmdet' else small(family))
    model.init_weights()
    targets, data = StudentTargets(model, {'labels'}), batch()
    with targets:
        losses_of(model, data)
    prepared = model.data_preprocessor(copy.deepcopy(data), True)
    with torch.no_grad():
        sizes = [level.shape[-2:] for level in model(prepared['inputs'], None, mode='tensor')[0]]
    points = torch.cat(model.bbox_head.prior_generator.grid_priors(sizes, device='cpu'))[:, :2]
    labels = targets.records(2)['labels'].reshape(2, -1)
    for image, sample in zip(labels, prepared['data_samples'], strict=True):
        assert (image < 4).any()
        for point, label in zip(points[image < 4], image[image < 4], strict=True):
            truth = sample.gt_instances
            assert label in truth.labels
            # RTMDet may take a point in one box for a neighbouring other one
            boxes = truth.bboxes[truth.labels == label] if family == 'fcos' else truth.bboxes
            assert ((boxes[:, :2] <= point) & (point <= boxes[:, 2:])).all(dim=1).any()


def test_a_softmax_over_points_is_refused():
    cfg = small('retinanet')
    cfg.bbox_head.loss_cls = dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0)
    with pytest.raises(ValueError, match='one sigmoid a class, not for RetinaHead with a softmax'):
        StudentTargets(MODELS.build(cfg), {'labels'})


def test_a_head_that_is_not_known_is_refused():
    head = dense_heads.TOODHead.__new__(dense_heads.TOODHead)
    with pytest.raises(ValueError, match='RTMDet, FCOS and YOLOX heads .* not for TOODHead. Compare features instead'):
        StudentTargets(SimpleNamespace(bbox_head=head), {'labels'})


def test_a_yolox_point_without_overlap_has_no_class():
    """Its target is one-hot times IoU: a row of zeros says nothing about the class, least of all that it is 0."""
    head = SimpleNamespace(num_classes=3)
    foreground = torch.tensor([True, False, True])
    classes = torch.tensor([[0.0, 0.7, 0.0], [0.0, 0.0, 0.0]])
    _, read = label_reader(dense_heads.YOLOXHead)
    assert read([(foreground, classes)], head, 1).tolist() == [1, 3, -1]
