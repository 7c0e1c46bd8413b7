# Self-teacher on the neck, YOLOX-s on KITTI. docs/frskd.md.
_base_ = ['../baselines/yolox_s_8xb8-100e_kitti.py', '../_base_/methods/frskd_dense.py']
model = dict(
    _delete_=True,
    type='mmkd.SelfTeacherDistill',
    architecture={{_base_.model}},
    self_teacher=dict(type='mmkd.ResidualBiFPNSelfTeacher', num_layers=2, norm='GN'),
    changes=dict(bbox_head=dict(feat_channels=256)),
    distiller={{_base_.distiller}})
