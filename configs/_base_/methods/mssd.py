# Multi-scale self-distillation with a Gaussian mask, after Jia et al. 2024, https://doi.org/10.1007/s44267-024-00040-3.
# A re-interpretation: only the abstract was at hand. Each level of the neck learns from the next deeper one. docs/mssd.md.
distiller = dict(
    type='mmkd.DetectionDistiller',
    student_recorders=dict(neck=dict(type='ModuleOutputs', source='neck')),
    connectors=dict(
        taught=dict(type='mmkd.CrossScaleConnector', role='student', direction='deep_to_shallow'),
        teaching=dict(type='mmkd.CrossScaleConnector', role='teacher', direction='deep_to_shallow')),
    masks=dict(objects=dict(type='mmkd.GaussianMask', shape='gaussian', cells=(3, 8))),
    distill_losses=dict(
        loss_mssd=dict(
            type='mmkd.PyramidLoss', loss=dict(type='mmkd.MaskedFeatureLoss', gate=True, loss_weight=0.05))),
    loss_forward_mappings=dict(
        loss_mssd=dict(
            preds_S=dict(from_student=True, recorder='neck', connector='taught'),
            preds_T=dict(from_student=True, recorder='neck', connector='teaching'),
            mask=dict(mask='objects'))),
    schedules=dict(loss_mssd=dict(begin=0, end=3, ramp='linear')))
