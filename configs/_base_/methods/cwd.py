# MMRazor's channel-wise divergence with MMRazor's own weight, Shu et al. 2021, https://arxiv.org/abs/2011.13256: to compare
# with. MMRazor's connectors and losses work in the same places as mmkd's. Always through a learned 1x1, on every level.
distiller = dict(
    type='mmkd.DetectionDistiller',
    student_recorders=dict(neck=dict(type='ModuleOutputs', source='neck')),
    teacher_recorders=dict(neck=dict(type='ModuleOutputs', source='neck')),
    connectors=dict(adapt=dict(type='mmkd.PyramidConnector', connector=dict(type='mmkd.ConvConnector'))),
    distill_losses=dict(
        loss_cwd=dict(
            type='mmkd.PyramidLoss', loss=dict(type='mmrazor.ChannelWiseDivergence', tau=1, loss_weight=10))),
    loss_forward_mappings=dict(
        loss_cwd=dict(
            preds_S=dict(from_student=True, recorder='neck', connector='adapt'),
            preds_T=dict(from_student=False, recorder='neck'))))
