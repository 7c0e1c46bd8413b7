# SSIM distillation with a 1x1 adaptation layer on every level of the student's neck. docs/ssim.md.
# The channels are read from the two models.
_base_ = './ssim.py'
distiller = dict(
    connectors=dict(adapt=dict(type='mmkd.PyramidConnector', connector=dict(type='mmkd.ConvConnector'))),
    loss_forward_mappings=dict(loss_ssim=dict(preds_S=dict(connector='adapt'))))
