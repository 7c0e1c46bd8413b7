# mkd for two-stage detectors: `mkd_neck.py`, and soft targets of the RoI heads on the student's sampled proposals. docs/mkd.md.
# The last record of the head is that of the loss: OHEM and PISA run it before, to choose the proposals.
_base_ = './mkd_neck.py'
distiller = dict(
    student_recorders=dict(head=dict(type='ModuleOutputs', source='roi_head.bbox_head')),
    teacher_recorders=dict(head=dict(type='ModuleOutputs', source='roi_head.bbox_head')),
    distill_losses=dict(loss_mkd_soft=dict(type='mmkd.SoftTargetLoss', mode='softmax', loss_weight=0.5)),
    loss_forward_mappings=dict(
        loss_mkd_soft=dict(
            preds_S=dict(from_student=True, recorder='head', record_idx=-1, data_idx=0),
            preds_T=dict(from_student=False, recorder='head', data_idx=0),
            labels=dict(recorder='labels'))))
