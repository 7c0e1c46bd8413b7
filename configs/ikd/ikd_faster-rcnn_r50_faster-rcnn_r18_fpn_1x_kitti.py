# ikd on KITTI; the teacher is the baseline trained before. docs/ikd.md.
_base_ = ['../baselines/faster-rcnn_r18_fpn_1x_kitti.py', '../_base_/methods/ikd_roi.py']
model = dict(
    _delete_=True,
    type='mmkd.TeacherStudentDistill',
    architecture={{_base_.model}},
    teacher='mmkd::baselines/faster-rcnn_r50_fpn_1x_kitti.py',
    teacher_ckpt='work_dirs/faster-rcnn_r50_fpn_1x_kitti/epoch_12.pth',
    distiller={{_base_.distiller}})
