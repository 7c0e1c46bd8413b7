_base_ = 'mmdet::yolo/yolov3_d53_8xb8-ms-608-273e_coco.py'

# YOLOv3's config with the data of kitti_detection.py. Its assigner knows no ignored regions, so they are blanked.
data_root = 'data/kitti/'
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
