"""MMDetection detectors small enough for the CPU, as model configs without any download.

All share a ResNet-18 of `width` base channels (64 is the usual one) and a pyramid of `channels` channels; BatchNorm
is trained, and one-stage heads have GroupNorm: without, training from scratch stays on a plateau for half of a short
schedule. Names are those of MMDetection's config files.
"""

from collections.abc import Callable

from mmengine.config import ConfigDict

_STRIDES = [8, 16, 32, 64, 128]
_FOCAL = dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0)
_CROSS_ENTROPY = dict(type='CrossEntropyLoss', use_sigmoid=True, loss_weight=1.0)
_TEST = dict(nms_pre=300, min_bbox_size=0, score_thr=0.05, nms=dict(type='nms', iou_threshold=0.5), max_per_img=100)
_HEAD_NORM = dict(type='GN', num_groups=8, requires_grad=True)
_ATSS = dict(assigner=dict(type='ATSSAssigner', topk=9), allowed_border=-1, pos_weight=-1, debug=False)


def toy_detector(
    family: str, *, num_classes: int = 4, width: int = 16, channels: int = 64, convs: int = 4
) -> ConfigDict:
    """Model config of a small detector.

    Args:
        family: One of `FAMILIES`: retinanet, faster-rcnn, gfl, fcos, atss, yolox.
        num_classes: Classes of the head.
        width: Base channels of the backbone (YOLOX: of its CSPDarknet, 64 being the full one).
        channels: Channels of every level of the pyramid and of the head.
        convs: Convolutions in each branch of a one-stage head.

    Returns:
        A fresh config for `model=`, or for `MODELS.build`.

    Raises:
        ValueError: For a family that is not known.
    """
    if family not in FAMILIES:
        raise ValueError(f'family must be one of {sorted(FAMILIES)}, got {family!r}')
    return ConfigDict(FAMILIES[family](num_classes, width, channels, convs))


def toy_student(num_classes: int = 4) -> ConfigDict:
    """RetinaNet with a quarter-width ResNet-18 and a 64-channel pyramid: 1.1 M parameters."""
    return toy_detector('retinanet', num_classes=num_classes, convs=2)


def tiny_student(num_classes: int = 4) -> ConfigDict:
    """RetinaNet with an eighth-width ResNet-18 and a 16-channel pyramid: 0.2 M parameters."""
    return toy_detector('retinanet', num_classes=num_classes, width=8, channels=16, convs=2)


def toy_teacher(num_classes: int = 4) -> ConfigDict:
    """RetinaNet with a full ResNet-18 and a 96-channel pyramid: 12.1 M parameters."""
    return toy_detector('retinanet', num_classes=num_classes, width=64, channels=96, convs=2)


def _preprocessor() -> dict:
    mean, std = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    return dict(type='DetDataPreprocessor', mean=mean, std=std, bgr_to_rgb=True, pad_size_divisor=32)


def _base(kind: str, width: int, channels: int, *, start_level: int = 1, extra: bool | str = 'on_output') -> dict:
    return dict(
        type=kind,
        data_preprocessor=_preprocessor(),
        backbone=dict(
            type='ResNet',
            depth=18,
            base_channels=width,
            num_stages=4,
            out_indices=(0, 1, 2, 3),
            norm_cfg=dict(type='BN', requires_grad=True),
            norm_eval=False,
            style='pytorch',
        ),
        neck=dict(
            type='FPN',
            in_channels=[width, 2 * width, 4 * width, 8 * width],
            out_channels=channels,
            start_level=start_level,
            add_extra_convs=extra,
            num_outs=5,
        ),
    )


def _retinanet(num_classes: int, width: int, channels: int, convs: int) -> dict:
    head = dict(
        type='RetinaHead',
        num_classes=num_classes,
        in_channels=channels,
        stacked_convs=convs,
        feat_channels=channels,
        norm_cfg=dict(_HEAD_NORM),
        anchor_generator=dict(
            type='AnchorGenerator', octave_base_scale=2, scales_per_octave=3, ratios=[0.5, 1.0, 2.0], strides=_STRIDES
        ),
        bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_means=[0.0] * 4, target_stds=[1.0] * 4),
        loss_cls=dict(_FOCAL),
        loss_bbox=dict(type='L1Loss', loss_weight=1.0),
    )
    train = dict(
        assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0, ignore_iof_thr=-1),
        sampler=dict(type='PseudoSampler'),
        allowed_border=-1,
        pos_weight=-1,
        debug=False,
    )
    return dict(_base('RetinaNet', width, channels), bbox_head=head, train_cfg=train, test_cfg=dict(_TEST))


def _gfl(num_classes: int, width: int, channels: int, convs: int) -> dict:
    head = dict(
        type='GFLHead',
        num_classes=num_classes,
        in_channels=channels,
        stacked_convs=convs,
        feat_channels=channels,
        norm_cfg=dict(_HEAD_NORM),
        anchor_generator=_square_anchors(),
        loss_cls=dict(type='QualityFocalLoss', use_sigmoid=True, beta=2.0, loss_weight=1.0),
        loss_dfl=dict(type='DistributionFocalLoss', loss_weight=0.25),
        reg_max=16,
        loss_bbox=dict(type='GIoULoss', loss_weight=2.0),
    )
    return dict(_base('GFL', width, channels), bbox_head=head, train_cfg=dict(_ATSS), test_cfg=dict(_TEST))


def _atss(num_classes: int, width: int, channels: int, convs: int) -> dict:
    head = dict(
        type='ATSSHead',
        num_classes=num_classes,
        in_channels=channels,
        stacked_convs=convs,
        feat_channels=channels,
        norm_cfg=dict(_HEAD_NORM),
        anchor_generator=_square_anchors(),
        bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_means=[0.0] * 4, target_stds=[0.1, 0.1, 0.2, 0.2]),
        loss_cls=dict(_FOCAL),
        loss_bbox=dict(type='GIoULoss', loss_weight=2.0),
        loss_centerness=dict(_CROSS_ENTROPY),
    )
    return dict(_base('ATSS', width, channels), bbox_head=head, train_cfg=dict(_ATSS), test_cfg=dict(_TEST))


def _fcos(num_classes: int, width: int, channels: int, convs: int) -> dict:
    head = dict(
        type='FCOSHead',
        num_classes=num_classes,
        in_channels=channels,
        stacked_convs=convs,
        feat_channels=channels,
        strides=_STRIDES,
        regress_ranges=((-1, 32), (32, 64), (64, 128), (128, 256), (256, 100000000)),
        norm_cfg=dict(_HEAD_NORM),
        loss_cls=dict(_FOCAL),
        loss_bbox=dict(type='GIoULoss', loss_weight=1.0),
        loss_centerness=dict(_CROSS_ENTROPY),
    )
    return dict(_base('FCOS', width, channels), bbox_head=head, test_cfg=dict(_TEST))


def _faster_rcnn(num_classes: int, width: int, channels: int, convs: int) -> dict:
    coder = dict(type='DeltaXYWHBBoxCoder', target_means=[0.0] * 4)
    l1 = dict(type='L1Loss', loss_weight=1.0)
    rpn = dict(
        type='RPNHead',
        in_channels=channels,
        feat_channels=channels,
        anchor_generator=dict(type='AnchorGenerator', scales=[4], ratios=[0.5, 1.0, 2.0], strides=[4, 8, 16, 32, 64]),
        bbox_coder=dict(coder, target_stds=[1.0] * 4),
        loss_cls=dict(_CROSS_ENTROPY),
        loss_bbox=dict(l1),
    )
    box_head = dict(
        type='Shared2FCBBoxHead',
        in_channels=channels,
        fc_out_channels=4 * channels,
        roi_feat_size=7,
        num_classes=num_classes,
        bbox_coder=dict(coder, target_stds=[0.1, 0.1, 0.2, 0.2]),
        reg_class_agnostic=False,
        loss_cls=dict(_CROSS_ENTROPY, use_sigmoid=False),
        loss_bbox=dict(l1),
    )
    roi_layer = dict(type='RoIAlign', output_size=7, sampling_ratio=0)
    extractor = dict(type='SingleRoIExtractor', roi_layer=roi_layer, out_channels=channels)
    roi = dict(type='StandardRoIHead', bbox_roi_extractor=dict(extractor, featmap_strides=[4, 8, 16, 32]))
    model = _base('FasterRCNN', width, channels, start_level=0, extra=False)
    train, test = _two_stage_settings()
    return dict(model, rpn_head=rpn, roi_head=dict(roi, bbox_head=box_head), train_cfg=train, test_cfg=test)


def _two_stage_settings() -> tuple[dict, dict]:
    assigner = dict(type='MaxIoUAssigner', ignore_iof_thr=-1)
    sampler = dict(type='RandomSampler', neg_pos_ub=-1)
    proposals = dict(nms_pre=200, max_per_img=100, nms=dict(type='nms', iou_threshold=0.7), min_bbox_size=0)
    rpn = dict(
        assigner=dict(assigner, pos_iou_thr=0.7, neg_iou_thr=0.3, min_pos_iou=0.3, match_low_quality=True),
        sampler=dict(sampler, num=64, pos_fraction=0.5, add_gt_as_proposals=False),
        allowed_border=-1,
        pos_weight=-1,
        debug=False,
    )
    rcnn = dict(
        assigner=dict(assigner, pos_iou_thr=0.5, neg_iou_thr=0.5, min_pos_iou=0.5, match_low_quality=False),
        sampler=dict(sampler, num=64, pos_fraction=0.25, add_gt_as_proposals=True),
        pos_weight=-1,
        debug=False,
    )
    train = dict(rpn=rpn, rpn_proposal=dict(proposals), rcnn=rcnn)
    box_test = dict(score_thr=0.05, nms=dict(type='nms', iou_threshold=0.5), max_per_img=100)
    return train, dict(rpn=dict(proposals), rcnn=box_test)


def _yolox(num_classes: int, width: int, channels: int, convs: int) -> dict:
    norm, act = dict(type='BN', momentum=0.03, eps=0.001), dict(type='Swish')
    shared = dict(use_depthwise=False, norm_cfg=norm, act_cfg=act)
    return dict(
        type='YOLOX',
        data_preprocessor=dict(type='DetDataPreprocessor', pad_size_divisor=32),
        backbone=dict(type='CSPDarknet', deepen_factor=0.33, widen_factor=width / 64, out_indices=(2, 3, 4), **shared),
        neck=dict(
            type='YOLOXPAFPN',
            in_channels=[4 * width, 8 * width, 16 * width],
            out_channels=channels,
            num_csp_blocks=1,
            upsample_cfg=dict(scale_factor=2, mode='nearest'),
            **shared,
        ),
        bbox_head=dict(
            type='YOLOXHead',
            num_classes=num_classes,
            in_channels=channels,
            feat_channels=channels,
            stacked_convs=min(convs, 2),
            strides=(8, 16, 32),
            loss_cls=dict(_CROSS_ENTROPY, reduction='sum'),
            loss_bbox=dict(type='IoULoss', mode='square', eps=1e-16, reduction='sum', loss_weight=5.0),
            loss_obj=dict(_CROSS_ENTROPY, reduction='sum'),
            loss_l1=dict(type='L1Loss', reduction='sum', loss_weight=1.0),
            **shared,
        ),
        train_cfg=dict(assigner=dict(type='SimOTAAssigner', center_radius=2.5)),
        test_cfg=dict(score_thr=0.01, nms=dict(type='nms', iou_threshold=0.65)),
    )


def _square_anchors() -> dict:
    return dict(type='AnchorGenerator', ratios=[1.0], octave_base_scale=4, scales_per_octave=1, strides=list(_STRIDES))


FAMILIES: dict[str, Callable[[int, int, int, int], dict]] = {
    'retinanet': _retinanet,
    'faster-rcnn': _faster_rcnn,
    'gfl': _gfl,
    'fcos': _fcos,
    'atss': _atss,
    'yolox': _yolox,
}

# (base channels, channels of the pyramid) of each size.
_SIZES = {'tiny': (8, 16), 'small': (16, 64), 'large': (64, 96)}


def _sized(family: str, size: str) -> Callable[[int], ConfigDict]:
    width, channels = _SIZES[size]

    def build(num_classes: int) -> ConfigDict:
        return toy_detector(family, num_classes=num_classes, width=width, channels=channels, convs=2)

    return build


# Names for the command line: `tiny` is `retinanet-tiny`, and so on.
SIZES: dict[str, Callable[[int], ConfigDict]] = {'tiny': tiny_student, 'small': toy_student, 'large': toy_teacher}
SIZES |= {f'{family}-{size}': _sized(family, size) for family in FAMILIES for size in _SIZES}
# Family -> names of student and teacher; the teacher has 4 to 10 times the student's parameters.
PAIRS: dict[str, tuple[str, str]] = {family: (f'{family}-tiny', f'{family}-small') for family in FAMILIES}
