"""The dry forward's input: small, unless a network's last layers do not pad, as SSD's."""

import re

import pytest
import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from mmkd.engine.dry_step import made_batch, step_problem
from mmkd.engine.export import rounding
from mmkd.models.algorithms.probe_size import PROBE_SIZE, probe_input

from .conftest import neck_distiller, small


def small_ssd() -> dict:
    """SSD on a small ResNet, with SSD300's neck: its last layer is 3x3 without padding."""
    model = small('retinanet')
    model['backbone']['out_indices'] = (2, 3)
    channels = (32, 64, 16, 16, 16)
    return dict(
        type='SingleStageDetector',
        data_preprocessor=model['data_preprocessor'],
        backbone=model['backbone'],
        neck=dict(
            type='SSDNeck',
            in_channels=(32, 64),
            out_channels=channels,
            level_strides=(2, 2, 1),
            level_paddings=(1, 1, 0),
            l2_norm_scale=None,
        ),
        bbox_head=dict(
            type='SSDHead',
            in_channels=channels,
            num_classes=4,
            anchor_generator=dict(
                type='SSDAnchorGenerator',
                basesize_ratio_range=(0.15, 0.9),
                input_size=512,
                strides=[16, 32, 64, 128, 256],
                ratios=[[2], [2], [2], [2], [2]],
            ),
            bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_stds=[0.1, 0.1, 0.2, 0.2]),
        ),
        train_cfg=dict(
            assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.5, gt_max_assign_all=False),
            sampler=dict(type='PseudoSampler'),
            smoothl1_beta=1.0,
            allowed_border=-1,
            pos_weight=-1,
            neg_pos_ratio=3,
        ),
        test_cfg=dict(nms_pre=100, nms=dict(type='nms', iou_threshold=0.45), score_thr=0.02, max_per_img=20),
    )


class Picky(nn.Module):
    """Features of images that are high enough, with a mode and a statistic to keep."""

    def __init__(self, least: int) -> None:
        super().__init__()
        self.neck = nn.BatchNorm2d(3)
        self.least = least

    def extract_feat(self, inputs: Tensor) -> Tensor:
        """Raise as a convolution whose kernel is larger than its input."""
        if inputs.shape[2] < self.least:
            raise RuntimeError('Kernel size is too large')
        return self.neck(inputs)


def test_usual_networks_get_the_small_image() -> None:
    assert probe_input(student=MODELS.build(small('retinanet'))).shape == (1, 3, *PROBE_SIZE)


def test_the_image_fits_the_network_that_needs_most() -> None:
    student, teacher = Picky(100), Picky(1000)
    assert probe_input(student=student, teacher=teacher).shape == (1, 3, 1024, 1536)
    assert student.training and teacher.neck.num_batches_tracked == 0


def test_a_network_without_any_fitting_size_is_named() -> None:
    said = re.escape('The features of the teacher Picky cannot be computed on an image of 1024x1536 px: Kernel size')
    with pytest.raises(ValueError, match=said):
        probe_input(student=Picky(1), teacher=Picky(1025))


def ssd_algorithm() -> nn.Module:
    """SSD on both sides, from different seeds."""
    torch.manual_seed(1)
    teacher = MODELS.build(small_ssd())
    torch.manual_seed(0)
    return MODELS.build(
        dict(type='mmkd.TeacherStudentDistill', distiller=neck_distiller(), architecture=small_ssd(), teacher=teacher)
    )


def test_ssd_is_distilled() -> None:
    algorithm = ssd_algorithm()
    assert algorithm.distiller.input_size == (512, 768)
    assert algorithm.distiller.taps[True, 'neck'].strides[:4] == (16, 32, 64, 128)
    algorithm.eval()  # one image is too little for BatchNorm
    losses = algorithm(*made_batch((512, 768)), mode='loss')
    distilled = [value for name, value in losses.items() if name.startswith('distill.')]
    assert len(distilled) == 5 and all(0 < float(value.detach()) < 2 for value in distilled)


def test_the_trial_step_of_ssd_is_taken_on_an_image_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm = ssd_algorithm()
    assert step_problem(algorithm) is None

    def broken(*args: object) -> None:
        raise ValueError('planted')

    monkeypatch.setattr(algorithm, 'loss', broken)
    assert 'fails (ValueError): planted' in step_problem(algorithm)


def test_ssd_is_compared_before_it_is_exported() -> None:
    model = MODELS.build(small_ssd()).eval()
    assert rounding(model, model) == 0
