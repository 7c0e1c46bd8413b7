# The paper's own experiment: ResNet-18 on CIFAR-100 with the published self-teacher and weights. docs/frskd.md.
# Needs the optional extra `mmkd[classification]`.
_base_ = ['../baselines/resnet-18_b128-200e_cifar100.py', '../_base_/methods/frskd_classifier.py']
model = dict(
    _delete_=True,
    type='mmkd.SelfTeacherDistill',
    architecture={{_base_.model}},
    self_teacher=dict(type='mmkd.BiFPNSelfTeacher', width=2, depth=2),
    source='backbone',
    changes={'head.in_channels': 1024},
    distiller={{_base_.distiller}})
