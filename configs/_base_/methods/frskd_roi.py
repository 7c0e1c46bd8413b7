# FRSKD for a softmax head on RoIs (Faster R-CNN): both heads see the student's sampled proposals. docs/frskd.md.
# The last record of the student's head is that of its loss: OHEM and PISA run it before, to choose the proposals.
_base_ = './frskd.py'
distiller = dict(
    student_recorders=dict(scores=dict(type='ModuleOutputs', source='roi_head.bbox_head')),
    teacher_recorders=dict(scores=dict(type='ModuleOutputs', source='roi_head.bbox_head')),
    distill_losses=dict(loss_frskd_kd=dict(type='mmkd.SoftTargetLoss', mode='softmax', tau=1.0, loss_weight=1.0)),
    loss_forward_mappings=dict(
        loss_frskd_kd=dict(
            preds_S=dict(from_student=True, recorder='scores', record_idx=-1, data_idx=0),
            preds_T=dict(from_student=False, recorder='scores', data_idx=0))),
    schedules=dict(loss_frskd_kd=dict(begin=0, end=4, ramp='sigmoid')))
