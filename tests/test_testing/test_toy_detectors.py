import pytest
import torch
from mmengine.registry import MODELS
from mmengine.structures import InstanceData

from mmkd.testing.toy_detectors import FAMILIES, toy_detector, toy_student, toy_teacher


def _batch():
    from mmdet.structures import DetDataSample

    sample = DetDataSample(metainfo=dict(img_shape=(64, 96), ori_shape=(64, 96), scale_factor=(1.0, 1.0), img_id=0))
    boxes, labels = torch.tensor([[8.0, 8.0, 40.0, 48.0], [50.0, 10.0, 90.0, 40.0]]), torch.tensor([0, 2])
    sample.gt_instances = InstanceData(bboxes=boxes, labels=labels)
    return dict(inputs=[torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)], data_samples=[sample])


@pytest.mark.filterwarnings('ignore:.*num_anchors.*', 'ignore:torch.meshgrid')
@pytest.mark.parametrize('family', FAMILIES)
def test_every_family_trains_one_step_and_predicts(family):
    torch.manual_seed(0)
    model = MODELS.build(toy_detector(family, num_classes=3, width=8, channels=16, convs=1))
    model.init_weights()
    losses = model(**model.data_preprocessor(_batch(), training=True), mode='loss')
    total, _ = model.parse_losses(losses)
    total.backward()
    with_gradient = [p.grad is not None for p in model.parameters() if p.requires_grad]
    assert torch.isfinite(total) and sum(with_gradient) > 0.9 * len(with_gradient)
    with torch.no_grad():
        assert model.eval().test_step(_batch())[0].pred_instances.bboxes.shape[1] == 4


def test_no_family_downloads_anything():
    for family in FAMILIES:
        assert 'http' not in str(toy_detector(family)) and 'Pretrained' not in str(toy_detector(family))


def test_student_has_a_tenth_of_the_teachers_parameters():
    sizes = [sum(p.numel() for p in MODELS.build(cfg).parameters()) for cfg in (toy_student(3), toy_teacher(3))]
    assert 1.0e6 < sizes[0] < 1.2e6
    assert 11.5e6 < sizes[1] < 12.5e6


def test_configs_are_independent_of_each_other():
    first = toy_detector('gfl')
    first.bbox_head.norm_cfg.num_groups = 2
    first.test_cfg.nms.iou_threshold = 0.1
    second = toy_detector('gfl')
    assert second.bbox_head.norm_cfg.num_groups == 8
    assert second.test_cfg.nms.iou_threshold == 0.5


def test_refuses_an_unknown_family():
    with pytest.raises(ValueError, match="family must be one of .*'gfl'"):
        toy_detector('ssd')
