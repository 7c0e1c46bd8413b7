# Feature refinement by a self-teacher, Ji et al., CVPR 2021, https://arxiv.org/abs/2103.08273: attention maps of the
# refined levels. For detectors a re-interpretation. The soft labels depend on the head: frskd_dense.py, frskd_roi.py,
# frskd_classifier.py. The weights rise over the first epochs, while the self-teacher is still untrained. docs/frskd.md.
distiller = dict(
    type='mmkd.DetectionDistiller',
    student_recorders=dict(features=dict(type='ModuleOutputs', source='neck')),
    teacher_recorders=dict(refined=dict(type='ModuleOutputs', source='backbone')),
    distill_losses=dict(
        loss_frskd_at=dict(type='mmkd.PyramidLoss', loss=dict(type='mmkd.AttentionMapLoss', loss_weight=0.5))),
    loss_forward_mappings=dict(
        loss_frskd_at=dict(
            preds_S=dict(from_student=True, recorder='features'),
            preds_T=dict(from_student=False, recorder='refined'))),
    schedules=dict(loss_frskd_at=dict(begin=0, end=4, ramp='sigmoid')))
