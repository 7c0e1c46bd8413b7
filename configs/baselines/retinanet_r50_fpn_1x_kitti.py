_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py', '../_base_/datasets/kitti_detection.py',
    'mmdet::_base_/schedules/schedule_1x.py', 'mmdet::_base_/default_runtime.py'
]
# Smallest anchor 24 px: 99.4 % of the boxes of the train split have an anchor with IoU >= 0.5 (98.2 % with 32 px).
# ignore_iof_thr: anchors inside ignored regions (DontCare, Van, Person_sitting) are neither positive nor negative.
model = dict(
    bbox_head=dict(num_classes=3, anchor_generator=dict(octave_base_scale=3)),
    train_cfg=dict(assigner=dict(ignore_iof_thr=0.5)))
optim_wrapper = dict(optimizer=dict(lr=0.01))
