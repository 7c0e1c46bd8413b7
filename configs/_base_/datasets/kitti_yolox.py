_base_ = 'mmdet::yolox/yolox_s_8xb8-300e_coco.py'

# YOLOX's config with the data of kitti_detection.py in its own pipeline. Its assigner knows no ignored regions: they are
# blanked. Heights of 288..480 px in training, 384 px in testing.
data_root = 'data/kitti/'
img_scale = (1248, 384)  # width, height
pad_val = dict(img=(114.0, 114.0, 114.0))
data_prefix = dict(img='training/image_2', label='training/label_2')
model = dict(
    data_preprocessor=dict(batch_augments=[
        dict(type='BatchSyncRandomResize', random_size_range=(288, 480), size_divisor=32, interval=10)
    ]))
train_pipeline = [
    dict(type='Mosaic', img_scale=img_scale, pad_val=114.0),
    dict(type='RandomAffine', scaling_ratio_range=(0.5, 1.5), border=(-img_scale[0] // 2, -img_scale[1] // 2)),
    dict(type='YOLOXHSVRandomAug'),
    dict(type='RandomFlip', prob=0.5),
    dict(type='Resize', scale=img_scale, keep_ratio=True),
    dict(type='Pad', size=img_scale, pad_val=pad_val),
    dict(type='FilterAnnotations', min_gt_bbox_wh=(1, 1), keep_empty=False),
    dict(type='PackDetInputs')
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=img_scale, keep_ratio=True),
    dict(type='Pad', size=img_scale, pad_val=pad_val),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))
]
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='Resize', scale=img_scale, keep_ratio=True)],
            [dict(type='RandomFlip', prob=1.0), dict(type='RandomFlip', prob=0.0)],
            [dict(type='Pad', size=img_scale, pad_val=pad_val)],
            [
                dict(
                    type='PackDetInputs',
                    meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'flip', 'flip_direction'))
            ],
        ])
]
train_dataset = dict(
    _delete_=True,
    type='MultiImageMixDataset',
    dataset=dict(
        type='mmkd.KittiDataset',
        data_root=data_root,
        ann_file='ImageSets/train.txt',
        data_prefix=data_prefix,
        filter_cfg=dict(filter_empty_gt=True, min_size=32),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True),
            dict(type='mmkd.EraseIgnoredRegions')
        ]),
    pipeline=train_pipeline)
val_dataset = dict(
    _delete_=True,
    type='mmkd.KittiDataset',
    data_root=data_root,
    ann_file='ImageSets/val.txt',
    data_prefix=data_prefix,
    test_mode=True,
    pipeline=test_pipeline)
train_dataloader = dict(dataset=train_dataset)
val_dataloader = dict(dataset=val_dataset)
test_dataloader = dict(dataset=val_dataset)
val_evaluator = dict(_delete_=True, type='mmkd.KittiMetric')
test_evaluator = dict(_delete_=True, type='mmkd.KittiMetric')
