# FRSKD for dense heads with FitNet-style features: mean square error behind a learned 1x1. docs/frskd.md.
_base_ = './frskd_dense.py'
distiller = dict(
    connectors=dict(fit=dict(type='mmkd.PyramidConnector', connector=dict(type='mmkd.ConvConnector'))),
    distill_losses=dict(
        loss_frskd_at=dict(loss=dict(_delete_=True, type='mmkd.MaskedFeatureLoss', normalize='none', loss_weight=1.0))),
    loss_forward_mappings=dict(loss_frskd_at=dict(preds_S=dict(connector='fit'))))
