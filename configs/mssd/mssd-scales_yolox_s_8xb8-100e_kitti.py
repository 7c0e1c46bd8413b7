# Ablation: the scales alone, without a mask. docs/mssd.md.
_base_ = ['../baselines/yolox_s_8xb8-100e_kitti.py', '../_base_/methods/mssd_scales.py']
model = dict(
    _delete_=True,
    type='mmkd.MultiScaleSelfDistill',
    architecture={{_base_.model}},
    distiller={{_base_.distiller}})
