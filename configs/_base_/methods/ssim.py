# SSIM distillation of the neck's outputs, de Rijk et al., NeurIPS 2022, https://arxiv.org/abs/2211.13133.
# For pairs whose necks have equal channels; `ssim_adapt.py` adds the 1x1 adaptation layer. docs/ssim.md.
distiller = dict(
    type='mmkd.DetectionDistiller',
    student_recorders=dict(neck=dict(type='ModuleOutputs', source='neck')),
    teacher_recorders=dict(neck=dict(type='ModuleOutputs', source='neck')),
    distill_losses=dict(
        loss_ssim=dict(type='mmkd.PyramidLoss', loss=dict(type='mmkd.SSIMLoss', data_range=1.0, loss_weight=4.0))),
    loss_forward_mappings=dict(
        loss_ssim=dict(
            preds_S=dict(from_student=True, recorder='neck'),
            preds_T=dict(from_student=False, recorder='neck'))))
