# MMRazor's Pearson correlation with MMRazor's own weight for RetinaNet, Cao et al. 2022,
# https://arxiv.org/abs/2207.02039: to compare with. Always through a learned 1x1 and on every level that both necks have;
# published without it and on four levels (`strides=` leaves levels out).
# Mean and deviation of a channel run over the batch of one process: several processes differ from one with the same
# total batch. A level of one cell (P7 of images up to 128 px) with one image a process has no deviation: the loss is
# NaN and training stops there. Take more images, larger ones, or leave the level out by `strides=` in both mappings.
distiller = dict(
    type='mmkd.DetectionDistiller',
    student_recorders=dict(neck=dict(type='ModuleOutputs', source='neck')),
    teacher_recorders=dict(neck=dict(type='ModuleOutputs', source='neck')),
    connectors=dict(adapt=dict(type='mmkd.PyramidConnector', connector=dict(type='mmkd.ConvConnector'))),
    distill_losses=dict(
        loss_pkd=dict(type='mmkd.PyramidLoss', loss=dict(type='mmrazor.PKDLoss', loss_weight=10))),
    loss_forward_mappings=dict(
        loss_pkd=dict(
            preds_S=dict(from_student=True, recorder='neck', connector='adapt'),
            preds_T=dict(from_student=False, recorder='neck'))))
