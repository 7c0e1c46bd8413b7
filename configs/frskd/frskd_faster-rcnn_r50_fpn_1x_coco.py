# Self-teacher on the neck, Faster R-CNN R50 on COCO. docs/frskd.md.
_base_ = ['mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', '../_base_/methods/frskd_roi.py']
model = dict(
    _delete_=True,
    type='mmkd.SelfTeacherDistill',
    architecture={{_base_.model}},
    self_teacher=dict(type='mmkd.ResidualBiFPNSelfTeacher', num_layers=2, norm='GN'),
    distiller={{_base_.distiller}})
