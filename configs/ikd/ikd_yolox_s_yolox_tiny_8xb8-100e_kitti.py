# ikd on KITTI; the teacher is the baseline trained before. docs/ikd.md.
_base_ = ['../baselines/yolox_tiny_8xb8-100e_kitti.py', '../_base_/methods/ikd.py']
model = dict(
    _delete_=True,
    type='mmkd.TeacherStudentDistill',
    architecture={{_base_.model}},
    teacher='mmkd::baselines/yolox_s_8xb8-100e_kitti.py',
    teacher_ckpt='work_dirs/yolox_s_8xb8-100e_kitti/epoch_100.pth',
    distiller={{_base_.distiller}})
