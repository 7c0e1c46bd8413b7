# Alternative of the paper: FitNet-style features instead of attention maps. docs/frskd.md.
_base_ = ['mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', '../_base_/methods/frskd_fit.py']
model = dict(
    _delete_=True,
    type='mmkd.SelfTeacherDistill',
    architecture={{_base_.model}},
    self_teacher=dict(type='mmkd.ResidualBiFPNSelfTeacher', num_layers=2, norm='GN'),
    distiller={{_base_.distiller}})
