# Ablation: the Gaussian mask alone, without a second scale. docs/mssd.md.
_base_ = ['../baselines/yolox_s_8xb8-100e_kitti.py', '../_base_/methods/mssd_mask.py']
model = dict(
    _delete_=True,
    type='mmkd.MultiScaleSelfDistill',
    architecture={{_base_.model}},
    distiller={{_base_.distiller}})
