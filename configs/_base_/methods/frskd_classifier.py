# FRSKD for a classifier, as published: all stages of the backbone, alpha 2, beta 100, T 4, constant weights. The attention
# loss is the mean over the cells, as in the authors' code. docs/frskd.md.
distiller = dict(
    type='mmkd.DetectionDistiller',
    student_recorders=dict(
        features=dict(type='ModuleOutputs', source='backbone'), scores=dict(type='ModuleOutputs', source='head.fc')),
    teacher_recorders=dict(
        refined=dict(type='ModuleOutputs', source='backbone'), scores=dict(type='ModuleOutputs', source='head.fc')),
    distill_losses=dict(
        loss_frskd_at=dict(
            type='mmkd.PyramidLoss', loss=dict(type='mmkd.AttentionMapLoss', reduction='mean', loss_weight=100.0)),
        loss_frskd_kd=dict(type='mmkd.SoftTargetLoss', mode='softmax', tau=4.0, loss_weight=2.0)),
    loss_forward_mappings=dict(
        loss_frskd_at=dict(
            preds_S=dict(from_student=True, recorder='features'),
            preds_T=dict(from_student=False, recorder='refined')),
        loss_frskd_kd=dict(
            preds_S=dict(from_student=True, recorder='scores'), preds_T=dict(from_student=False, recorder='scores'))))
