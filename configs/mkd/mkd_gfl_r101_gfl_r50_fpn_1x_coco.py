# mkd, GFL R101 -> R50. docs/mkd.md.
_base_ = ['mmdet::gfl/gfl_r50_fpn_1x_coco.py', '../_base_/methods/mkd.py']
model = dict(
    _delete_=True,
    type='mmkd.TeacherStudentDistill',
    architecture={{_base_.model}},
    teacher='mmdet::gfl/gfl_r101_fpn_ms-2x_coco.py',
    distiller={{_base_.distiller}})
