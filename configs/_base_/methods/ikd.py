# ikd for dense sigmoid heads of one kind (RetinaNet, FCOS, ATSS, GFL, YOLOX): `ikd_neck.py` for localisation, decoupled
# logits at the student's positive points for classification. docs/ikd.md.
_base_ = './ikd_neck.py'
distiller = dict(
    student_recorders=dict(head=dict(type='ModuleOutputs', source='bbox_head')),
    teacher_recorders=dict(head=dict(type='ModuleOutputs', source='bbox_head')),
    distill_losses=dict(loss_ikd_logit=dict(type='mmkd.DecoupledLogitLoss', mode='sigmoid', loss_weight=0.25)),
    loss_forward_mappings=dict(
        loss_ikd_logit=dict(
            preds_S=dict(from_student=True, recorder='head', data_idx=0),
            preds_T=dict(from_student=False, recorder='head', data_idx=0),
            labels=dict(recorder='labels'))))
