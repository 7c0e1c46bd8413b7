# SSIM, FCOS R101 -> R50; not a pair of the paper. docs/ssim.md.
_base_ = ['mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py', '../_base_/methods/ssim.py']
model = dict(
    _delete_=True,
    type='mmkd.TeacherStudentDistill',
    architecture={{_base_.model}},
    teacher='mmdet::fcos/fcos_r101-caffe_fpn_gn-head_ms-640-800-2x_coco.py',
    distiller={{_base_.distiller}})
