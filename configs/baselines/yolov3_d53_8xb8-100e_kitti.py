_base_ = 'mmdet::yolo/yolov3_d53_8xb8-ms-608-273e_coco.py'

# Anchors: `python -m mmkd.datasets.anchors --labels data/kitti/training/label_2 --split data/kitti/ImageSets/train.txt`
# (mean best IoU 0.74 over the 14902 boxes of the train split). YOLOv3's assigner knows no ignored regions: blanked.
data_root = 'data/kitti/'
model = dict(
    bbox_head=dict(
        num_classes=3,
        anchor_generator=dict(
            base_sizes=[[(121, 67), (186, 102), (281, 178)],
                        [(54, 52), (99, 44), (66, 148)],
                        [(18, 48), (39, 31), (69, 32)]])))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='mmkd.EraseIgnoredRegions'),
    dict(type='RandomResize', scale=[(1118, 338), (1553, 469)], keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackDetInputs')
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(1242, 375), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))
]
train_dataset = dict(
    _delete_=True,
    type='mmkd.KittiDataset',
    data_root=data_root,
    ann_file='ImageSets/train.txt',
    data_prefix=dict(img='training/image_2', label='training/label_2'),
    filter_cfg=dict(filter_empty_gt=True, min_size=32),
    pipeline=train_pipeline)
val_dataset = dict(
    _delete_=True,
    type='mmkd.KittiDataset',
    data_root=data_root,
    ann_file='ImageSets/val.txt',
    data_prefix=dict(img='training/image_2', label='training/label_2'),
    test_mode=True,
    pipeline=test_pipeline)
train_dataloader = dict(dataset=train_dataset)
val_dataloader = dict(dataset=val_dataset)
test_dataloader = dict(dataset=val_dataset)
val_evaluator = dict(_delete_=True, type='mmkd.KittiMetric')
test_evaluator = dict(_delete_=True, type='mmkd.KittiMetric')
train_cfg = dict(max_epochs=100, val_interval=5)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=2000),
    dict(type='MultiStepLR', by_epoch=True, milestones=[80, 92], gamma=0.1)
]
