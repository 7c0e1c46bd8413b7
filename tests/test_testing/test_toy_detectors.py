import pytest
import torch
from mmengine.registry import MODELS
from mmengine.structures import InstanceData

from mmkd.testing.toy_detectors import FAMILIES, SIZES, toy_detector


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


@pytest.mark.parametrize(('size', 'millions'), [('tiny', 0.2), ('small', 1.1), ('large', 12.1)])
def test_sizes_are_what_the_help_says(size, millions):
    count = sum(p.numel() for p in MODELS.build(SIZES[size](3)).parameters())
    assert count / 1e6 == pytest.approx(millions, rel=0.06)


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
