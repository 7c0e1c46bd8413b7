# SSIM, RepPoints R101 -> R50. docs/ssim.md.
_base_ = ['mmdet::reppoints/reppoints-moment_r50_fpn-gn_head-gn_1x_coco.py', '../_base_/methods/ssim.py']
model = dict(
    _delete_=True,
    type='mmkd.TeacherStudentDistill',
    architecture={{_base_.model}},
    teacher='mmdet::reppoints/reppoints-moment_r101_fpn-gn_head-gn_2x_coco.py',
    distiller={{_base_.distiller}})
