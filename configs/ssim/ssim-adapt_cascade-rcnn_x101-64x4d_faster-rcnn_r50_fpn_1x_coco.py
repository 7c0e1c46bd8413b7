# SSIM behind a 1x1 convolution on every level, Cascade R-CNN X101 -> Faster R-CNN R50. docs/ssim.md.
_base_ = ['mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', '../_base_/methods/ssim_adapt.py']
distiller = _base_.distiller
distiller.distill_losses.loss_ssim.loss.loss_weight = 2.0  # lambda between architectures; 4 within one
model = dict(
    _delete_=True,
    type='mmkd.TeacherStudentDistill',
    architecture={{_base_.model}},
    teacher='mmdet::cascade_rcnn/cascade-rcnn_x101-64x4d_fpn_1x_coco.py',
    distiller=distiller)
