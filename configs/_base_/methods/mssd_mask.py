# Ablation of mssd.py: no second scale; each level is drawn towards itself with the background masked out. docs/mssd.md.
distiller = dict(
    type='mmkd.DetectionDistiller',
    student_recorders=dict(neck=dict(type='ModuleOutputs', source='neck')),
    masks=dict(objects=dict(type='mmkd.GaussianMask', shape='gaussian', cells=(3, 8))),
    distill_losses=dict(
        loss_mssd=dict(
            type='mmkd.PyramidLoss', loss=dict(type='mmkd.MaskedFeatureLoss', gate=True, loss_weight=0.1))),
    loss_forward_mappings=dict(
        loss_mssd=dict(
            preds_S=dict(from_student=True, recorder='neck'),
            preds_T=dict(from_student=True, recorder='neck'),
            mask=dict(mask='objects'))),
    schedules=dict(loss_mssd=dict(begin=0, end=3, ramp='linear')))
