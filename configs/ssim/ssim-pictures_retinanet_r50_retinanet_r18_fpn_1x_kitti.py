# The same training, and every third epoch pictures of two validation images. docs/visualization.md.
_base_ = './ssim_retinanet_r50_retinanet_r18_fpn_1x_kitti.py'
custom_hooks = [dict(type='mmkd.DistillationPictureHook', interval=3, images=[0, 10])]
