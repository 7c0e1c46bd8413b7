# mkd without soft targets, for pairs whose heads differ: relations between layers, attention maps, guidance by a transition
# network, exploration, all on the neck. After Min and Wang, WASET abstract 148652 (a re-interpretation). docs/mkd.md.
# Channels and strides are read from the two models. A strategy whose loss_weight is 0 is off.
distiller = dict(
    type='mmkd.DetectionDistiller',
    student_recorders=dict(neck=dict(type='ModuleOutputs', source='neck')),
    teacher_recorders=dict(neck=dict(type='ModuleOutputs', source='neck')),
    connectors=dict(
        relate=dict(type='mmkd.PyramidConnector', connector=dict(type='mmkd.ConvConnector')),
        guide_student=dict(type='mmkd.PyramidConnector', connector=dict(type='mmkd.IntermediateGuidance')),
        guide_teacher=dict(
            type='mmkd.PyramidConnector', connector=dict(type='mmkd.IntermediateGuidance', reconstruct=True)),
        explore_student=dict(type='mmkd.PyramidConnector', connector=dict(type='mmkd.ExplorationCoder')),
        explore_teacher=dict(type='mmkd.PyramidConnector', connector=dict(type='mmkd.FactorAutoEncoder'))),
    distill_losses=dict(
        loss_mkd_relation=dict(type='mmkd.FSPLoss', relative=True, loss_weight=0.5),
        loss_mkd_attention=dict(type='mmkd.PyramidLoss', loss=dict(type='mmkd.AttentionMapLoss', loss_weight=0.2)),
        loss_mkd_guide=dict(type='mmkd.PyramidLoss', loss=dict(type='mmkd.GuidanceLoss', loss_weight=0.5)),
        loss_mkd_explore=dict(type='mmkd.PyramidLoss', loss=dict(type='mmkd.ExplorationLoss', loss_weight=1.0))),
    loss_forward_mappings=dict(
        loss_mkd_relation=dict(
            preds_S=dict(from_student=True, recorder='neck', connector='relate'),
            preds_T=dict(from_student=False, recorder='neck')),
        loss_mkd_attention=dict(
            preds_S=dict(from_student=True, recorder='neck'),
            preds_T=dict(from_student=False, recorder='neck')),
        loss_mkd_guide=dict(
            preds_S=dict(from_student=True, recorder='neck', connector='guide_student'),
            preds_T=dict(from_student=False, recorder='neck', connector='guide_teacher')),
        loss_mkd_explore=dict(
            preds_S=dict(from_student=True, recorder='neck', connector='explore_student'),
            preds_T=dict(from_student=False, recorder='neck', connector='explore_teacher'))))
