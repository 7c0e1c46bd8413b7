# Ablation of mssd.py: the levels teach each other on the whole map, without a mask. docs/mssd.md.
distiller = dict(
    type='mmkd.DetectionDistiller',
    student_recorders=dict(neck=dict(type='ModuleOutputs', source='neck')),
    connectors=dict(
        taught=dict(type='mmkd.CrossScaleConnector', role='student', direction='deep_to_shallow'),
        teaching=dict(type='mmkd.CrossScaleConnector', role='teacher', direction='deep_to_shallow')),
    distill_losses=dict(
        loss_mssd=dict(type='mmkd.PyramidLoss', loss=dict(type='mmkd.MaskedFeatureLoss', loss_weight=0.05))),
    loss_forward_mappings=dict(
        loss_mssd=dict(
            preds_S=dict(from_student=True, recorder='neck', connector='taught'),
            preds_T=dict(from_student=True, recorder='neck', connector='teaching'))),
    schedules=dict(loss_mssd=dict(begin=0, end=3, ramp='linear')))
