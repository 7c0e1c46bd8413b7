# ikd without logits, for pairs whose heads differ: feature distillation (resampling, spatial attention) and one-to-many
# alignment on the neck. After Yao et al. 2025, https://doi.org/10.32604/cmc.2025.060609 (a re-interpretation). docs/ikd.md.
# Channels and strides are read from the two models.
distiller = dict(
    type='mmkd.DetectionDistiller',
    student_recorders=dict(neck=dict(type='ModuleOutputs', source='neck')),
    teacher_recorders=dict(neck=dict(type='ModuleOutputs', source='neck')),
    connectors=dict(
        resample=[
            dict(type='mmkd.PyramidConnector', connector=dict(type='mmkd.FeatureResampler', mode='mask', ratio=0.65)),
            dict(type='mmkd.PyramidConnector', connector=dict(type='mmkd.SpatialAttention', norm='image'))],
        align=dict(type='mmkd.FeatureAlignment')),
    distill_losses=dict(
        loss_ikd_feature=dict(
            type='mmkd.PyramidLoss',
            loss=dict(type='mmkd.FeatureAlignmentLoss', statistics_weight=0.0, relative=True, loss_weight=1.0)),
        loss_ikd_align=dict(
            type='mmkd.PyramidLoss', loss=dict(type='mmkd.FeatureAlignmentLoss', relative=True, loss_weight=0.25))),
    loss_forward_mappings=dict(
        loss_ikd_feature=dict(
            preds_S=dict(from_student=True, recorder='neck', connector='resample'),
            preds_T=dict(from_student=False, recorder='neck')),
        loss_ikd_align=dict(
            preds_S=dict(
                from_student=True, recorder='neck', connector='align', other=dict(from_student=False, recorder='neck')),
            preds_T=dict(from_student=False, recorder='neck'))))
