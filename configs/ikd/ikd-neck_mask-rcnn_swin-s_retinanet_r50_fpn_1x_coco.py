# ikd on the necks of different detectors: Mask R-CNN Swin-S -> RetinaNet R50. docs/ikd.md.
_base_ = ['mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', '../_base_/methods/ikd_neck.py']
model = dict(
    _delete_=True,
    type='mmkd.TeacherStudentDistill',
    architecture={{_base_.model}},
    teacher='mmdet::swin/mask-rcnn_swin-s-p4-w7_fpn_amp-ms-crop-3x_coco.py',
    distiller={{_base_.distiller}})
