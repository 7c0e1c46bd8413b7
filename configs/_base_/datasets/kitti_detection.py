# KITTI 2D objects in KITTI's own layout: training/image_2, training/label_2, ImageSets/{train,val}.txt (3712 / 3769).
# Frames are about 1242x375 and objects down to 25 px count, so images are never made smaller than 0.9 of that.
dataset_type = 'mmkd.KittiDataset'
data_root = 'data/kitti/'

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
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
train_dataloader = dict(
    batch_size=2,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    batch_sampler=dict(type='AspectRatioBatchSampler'),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='ImageSets/train.txt',
        data_prefix=dict(img='training/image_2', label='training/label_2'),
        filter_cfg=dict(filter_empty_gt=True, min_size=32),
        pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='ImageSets/val.txt',
        data_prefix=dict(img='training/image_2', label='training/label_2'),
        test_mode=True,
        pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(type='mmkd.KittiMetric')
test_evaluator = val_evaluator

# The testing part, without labels: write the files for KITTI's server.
# test_dataloader = dict(dataset=dict(ann_file='ImageSets/test.txt', data_prefix=dict(_delete_=True, img='testing/image_2')))
# test_evaluator = dict(type='mmkd.KittiMetric', format_only=True, outfile_prefix='work_dirs/kitti_test')
