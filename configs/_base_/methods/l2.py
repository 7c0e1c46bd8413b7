# The l2 control of SSIM distillation: the same features and normalisation, another distance. docs/ssim.md.
distiller = dict(
    type='mmkd.DetectionDistiller',
    student_recorders=dict(neck=dict(type='ModuleOutputs', source='neck')),
    teacher_recorders=dict(neck=dict(type='ModuleOutputs', source='neck')),
    distill_losses=dict(
        loss_l2=dict(type='mmkd.PyramidLoss', loss=dict(type='mmkd.NormalizedLpLoss', p=2, loss_weight=4.0))),
    loss_forward_mappings=dict(
        loss_l2=dict(
            preds_S=dict(from_student=True, recorder='neck'),
            preds_T=dict(from_student=False, recorder='neck'))))
