_base_ = '../_base_/datasets/kitti_yolov3.py'

# Anchors: `python -m mmkd.datasets.anchors --labels data/kitti/training/label_2 --split data/kitti/ImageSets/train.txt`
# (mean best IoU 0.74 over the 14902 boxes of the train split).
model = dict(
    bbox_head=dict(
        num_classes=3,
        anchor_generator=dict(
            base_sizes=[[(121, 67), (186, 102), (281, 178)],
                        [(54, 52), (99, 44), (66, 148)],
                        [(18, 48), (39, 31), (69, 32)]])))
train_cfg = dict(max_epochs=100, val_interval=5)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=2000),
    dict(type='MultiStepLR', by_epoch=True, milestones=[80, 92], gamma=0.1)
]
