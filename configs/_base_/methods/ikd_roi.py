# ikd for two-stage detectors: `ikd_neck.py` for localisation, decoupled logits of the RoI heads on the student's sampled
# proposals (background is a class) for classification. docs/ikd.md. The last record of the head is that of the loss:
# OHEM and PISA run it before, to choose the proposals.
_base_ = './ikd_neck.py'
distiller = dict(
    student_recorders=dict(head=dict(type='ModuleOutputs', source='roi_head.bbox_head')),
    teacher_recorders=dict(head=dict(type='ModuleOutputs', source='roi_head.bbox_head')),
    connectors=dict(
        resample=[
            dict(type='mmkd.PyramidConnector', connector=dict(type='mmkd.FeatureResampler', mode='mask', ratio=0.45)),
            dict(type='mmkd.PyramidConnector', connector=dict(type='mmkd.SpatialAttention', norm='image'))]),
    distill_losses=dict(loss_ikd_logit=dict(type='mmkd.DecoupledLogitLoss', mode='softmax', loss_weight=1.0)),
    loss_forward_mappings=dict(
        loss_ikd_logit=dict(
            preds_S=dict(from_student=True, recorder='head', record_idx=-1, data_idx=0),
            preds_T=dict(from_student=False, recorder='head', data_idx=0),
            labels=dict(recorder='labels'))))
