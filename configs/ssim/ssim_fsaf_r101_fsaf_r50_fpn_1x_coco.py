# SSIM, FSAF R101 -> R50. docs/ssim.md.
_base_ = ['mmdet::fsaf/fsaf_r50_fpn_1x_coco.py', '../_base_/methods/ssim.py']
model = dict(
    _delete_=True,
    type='mmkd.TeacherStudentDistill',
    architecture={{_base_.model}},
    teacher='mmdet::fsaf/fsaf_r101_fpn_1x_coco.py',
    distiller={{_base_.distiller}})
