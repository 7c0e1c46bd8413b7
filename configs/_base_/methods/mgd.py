# MMRazor's masked generation with MMRazor's own weight, Yang et al. 2022, https://arxiv.org/abs/2205.01529: to compare with.
# The channels are read from the two models, for MMRazor's connectors as well.
distiller = dict(
    type='mmkd.DetectionDistiller',
    student_recorders=dict(neck=dict(type='ModuleOutputs', source='neck')),
    teacher_recorders=dict(neck=dict(type='ModuleOutputs', source='neck')),
    connectors=dict(
        generate=dict(type='mmkd.PyramidConnector', connector=dict(type='mmrazor.MGDConnector', lambda_mgd=0.65))),
    distill_losses=dict(
        loss_mgd=dict(type='mmkd.PyramidLoss', loss=dict(type='mmrazor.MGDLoss', alpha_mgd=2e-5))),
    loss_forward_mappings=dict(
        loss_mgd=dict(
            preds_S=dict(from_student=True, recorder='neck', connector='generate'),
            preds_T=dict(from_student=False, recorder='neck'))))
