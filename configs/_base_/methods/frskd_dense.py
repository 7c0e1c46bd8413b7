# FRSKD for heads with one sigmoid a class on every point (RetinaNet, FCOS, YOLOX). docs/frskd.md.
_base_ = './frskd.py'
distiller = dict(
    student_recorders=dict(scores=dict(type='ModuleOutputs', source='bbox_head')),
    teacher_recorders=dict(scores=dict(type='ModuleOutputs', source='bbox_head')),
    distill_losses=dict(loss_frskd_kd=dict(type='mmkd.SoftTargetLoss', mode='sigmoid', tau=1.0, loss_weight=1.0)),
    loss_forward_mappings=dict(
        loss_frskd_kd=dict(
            preds_S=dict(from_student=True, recorder='scores', data_idx=0),
            preds_T=dict(from_student=False, recorder='scores', data_idx=0),
            labels=dict(recorder='labels'))),
    schedules=dict(loss_frskd_kd=dict(begin=0, end=4, ramp='sigmoid')))
