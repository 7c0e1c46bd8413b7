# mkd, teacher assistant, second step of R101 -> R50 -> R18: the R50 that the first step
# (mkd_retinanet_r101_retinanet_r50_fpn_1x_coco.py) has distilled teaches R18. docs/mkd.md.
_base_ = ['mmdet::retinanet/retinanet_r18_fpn_1x_coco.py', '../_base_/methods/mkd.py']
model = dict(
    _delete_=True,
    type='mmkd.TeacherStudentDistill',
    architecture={{_base_.model}},
    teacher='mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
    teacher_ckpt='work_dirs/mkd_retinanet_r101_retinanet_r50_fpn_1x_coco/epoch_12.pth',
    distiller={{_base_.distiller}})
