"""Connectors in a row and of both sides, and losses of other projects, on the records of real detectors."""

import torch
from mmengine.model import BaseModule
from torch import nn

from .conftest import batch, build_algorithm, build_teacher, losses_of, neck_distiller

CONV = dict(type='mmkd.PyramidConnector', connector=dict(type='mmkd.ConvConnector'))


def sides(**own: object) -> dict:
    adapted = dict(from_student=True, recorder='neck', connector='adapt') | own
    return dict(loss_feat=dict(preds_S=adapted, preds_T=dict(from_student=False, recorder='neck')))


def test_connectors_in_a_row_are_each_built_for_what_the_one_before_gives():
    distiller = neck_distiller(connectors=dict(adapt=[CONV, CONV]), loss_forward_mappings=sides())
    model = build_algorithm('retinanet', distiller, build_teacher('retinanet', channels=32))
    channels = [next(part.parameters()).shape[1] for part in model.distiller.connectors['adapt']]
    assert channels == [16, 32]
    assert losses_of(model, batch())['distill.loss_feat_p3'] > 0


class BothSides(BaseModule):
    """Says how many levels it saw, and passes the first side on."""

    def __init__(self, out_channels=None):
        super().__init__()
        self.out_channels, self.seen = out_channels, []

    def forward(self, own, other):
        self.seen.append((len(own), len(other)))
        return own


def test_strides_of_the_other_side_select_levels():
    chosen = dict(strides=[8, 16], other=dict(from_student=False, recorder='neck', strides=[8, 16]))
    mappings = sides(**chosen)
    mappings['loss_feat']['preds_T']['strides'] = [8, 16]
    model = build_algorithm(
        'retinanet', neck_distiller(connectors=dict(adapt=dict(type=BothSides)), loss_forward_mappings=mappings)
    )
    connector = model.distiller.connectors['adapt']
    assert connector.out_channels == (16, 16)
    losses_of(model, batch())
    assert connector.seen == [(2, 2)] * 2


class Foreign(nn.Module):
    """A loss as another project writes it; notes the precision in which it is computed."""

    def __init__(self):
        super().__init__()
        self.loss_weight, self.dtypes = 1.0, set()

    def forward(self, preds_S, preds_T):
        self.dtypes |= {preds_S.dtype, preds_T.dtype, (preds_S.flatten(1) @ preds_T.flatten(1).T).dtype}
        return (preds_S - preds_T).square().mean()


def test_losses_of_other_projects_are_computed_in_float32_under_mixed_precision():
    model = build_algorithm('retinanet', neck_distiller(dict(type=Foreign)))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        losses = losses_of(model, batch())
    assert model.distiller.distill_losses['loss_feat'].loss.dtypes == {torch.float32}
    assert losses['distill.loss_feat_p3'].dtype == torch.float32


def test_a_branch_that_no_loss_reads_stays_in_the_graph():
    """DDP waits for the gradient of every parameter, and would stop in the second step."""
    sides = dict(
        preds_S=dict(from_student=True, recorder='neck', data_idx=0, connector='codes', connector_idx=0),
        preds_T=dict(from_student=False, recorder='neck', data_idx=0),
    )
    distiller = neck_distiller(
        connectors=dict(codes=dict(type='mmkd.ExplorationCoder', factor_channels=16)),
        distill_losses=dict(loss_code=dict(type='mmkd.NormalizedLpLoss', p=2)),
        loss_forward_mappings=dict(loss_code=sides),
    )
    model = build_algorithm('retinanet', distiller)
    total, _ = model.parse_losses(losses_of(model.train(), batch()))
    total.backward()
    codes = model.distiller.connectors['codes']
    assert all(parameter.grad.abs().sum() == 0 for parameter in codes.explore.parameters())
    assert all(parameter.grad.abs().sum() > 0 for parameter in codes.inherit.parameters())
