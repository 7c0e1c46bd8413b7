# The same training, and every 50 iterations a look at gradients and features; advice at the end. docs/diagnosis.md.
_base_ = './ssim_retinanet_r50_retinanet_r18_fpn_1x_kitti.py'
custom_hooks = [dict(type='mmkd.DiagnosisHook', interval=50)]
