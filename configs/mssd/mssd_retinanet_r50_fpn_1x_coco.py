# Multi-scale self-distillation with a Gaussian mask, RetinaNet R50 on COCO. docs/mssd.md.
_base_ = ['mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', '../_base_/methods/mssd.py']
model = dict(
    _delete_=True,
    type='mmkd.MultiScaleSelfDistill',
    architecture={{_base_.model}},
    distiller={{_base_.distiller}})
