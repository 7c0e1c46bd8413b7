# mkd for dense sigmoid heads of one kind (RetinaNet, FCOS, ATSS, GFL, YOLOX): `mkd_neck.py`, and soft targets at the
# student's positive points. docs/mkd.md.
_base_ = './mkd_neck.py'
distiller = dict(
    student_recorders=dict(head=dict(type='ModuleOutputs', source='bbox_head')),
    teacher_recorders=dict(head=dict(type='ModuleOutputs', source='bbox_head')),
    distill_losses=dict(loss_mkd_soft=dict(type='mmkd.SoftTargetLoss', mode='sigmoid', loss_weight=0.5)),
    loss_forward_mappings=dict(
        loss_mkd_soft=dict(
            preds_S=dict(from_student=True, recorder='head', data_idx=0),
            preds_T=dict(from_student=False, recorder='head', data_idx=0),
            labels=dict(recorder='labels'))))
