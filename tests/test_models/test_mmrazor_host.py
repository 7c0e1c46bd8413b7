"""The losses and connectors of ikd and mkd inside MMRazor's own `ConfigurableDistiller`, unchanged."""

import mmkd.compat  # noqa: F401  (makes mmrazor importable)

# isort: split
import pytest
import torch
from mmengine.registry import MODELS
from mmrazor.models.distillers import ConfigurableDistiller
from torch import Tensor, nn

from mmkd.registry import MODELS as MMKD_MODELS


class Net(nn.Module):
    """Two convolutions and class logits."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.low, self.high = nn.Conv2d(3, channels, 3, padding=1), nn.Conv2d(channels, 2 * channels, 3, stride=2)
        self.logits = nn.Linear(2 * channels, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(self.high(self.low(x)).mean((2, 3)))


CASES = {
    'attention': (dict(type='mmkd.AttentionMapLoss'), 'low', {}, {}),
    'soft targets': (dict(type='mmkd.SoftTargetLoss', mode='softmax'), 'logits', {}, {}),
    'alignment': (
        dict(type='mmkd.FeatureAlignmentLoss', relative=True),
        'low',
        dict(type='mmkd.FeatureAlignment', in_channels=4, out_channels=6),
        {},
    ),
    'resampling': (
        dict(type='mmkd.FeatureAlignmentLoss'),
        'low',
        dict(type='mmkd.FeatureResampler', in_channels=4, out_channels=6),
        {},
    ),
    'guidance': (
        dict(type='mmkd.GuidanceLoss'),
        'low',
        dict(type='mmkd.IntermediateGuidance', in_channels=4, out_channels=6),
        dict(type='mmkd.IntermediateGuidance', in_channels=6, out_channels=4, reconstruct=True),
    ),
    'exploration': (
        dict(type='mmkd.ExplorationLoss'),
        'high',
        dict(type='mmkd.ExplorationCoder', in_channels=8, factor_channels=4),
        dict(type='mmkd.FactorAutoEncoder', in_channels=12, factor_channels=4),
    ),
}


@pytest.mark.parametrize('case', CASES)
def test_component_works_in_the_stock_distiller(case: str) -> None:
    loss, layer, student_connector, teacher_connector = CASES[case]
    recorders = {layer: dict(type='ModuleOutputs', source=layer)}
    built = {side: cfg for side, cfg in (('student', student_connector), ('teacher', teacher_connector)) if cfg}
    mapping = {
        'preds_S': dict(from_student=True, recorder=layer) | (dict(connector='student') if 'student' in built else {}),
        'preds_T': dict(from_student=False, recorder=layer) | (dict(connector='teacher') if 'teacher' in built else {}),
    }
    distiller = MODELS.build(
        dict(
            type='mmrazor.ConfigurableDistiller',
            _scope_='mmrazor',
            student_recorders=recorders,
            teacher_recorders=dict(recorders),
            connectors=built,
            distill_losses=dict(loss_it=loss),
            loss_forward_mappings=dict(loss_it=mapping),
        )
    )
    assert type(distiller) is ConfigurableDistiller
    student, teacher = Net(4), Net(6)
    distiller.prepare_from_student(student)
    distiller.prepare_from_teacher(teacher)
    image = torch.randn(2, 3, 9, 13)
    with torch.no_grad(), distiller.teacher_recorders:
        teacher(image)
    with distiller.student_recorders:
        student(image)
    value = distiller.compute_distill_losses()['loss_it']
    value.backward()
    assert value.isfinite()
    assert student.low.weight.grad.abs().max() > 0
    assert all(p.grad is not None for p in distiller.parameters())


def test_every_component_of_ikd_and_mkd_is_registered_under_its_name() -> None:
    names = (
        'DecoupledLogitLoss SoftTargetLoss AttentionMapLoss FSPLoss ExplorationLoss FeatureAlignmentLoss GuidanceLoss '
        'FeatureResampler SpatialAttention FeatureAlignment IntermediateGuidance ExplorationCoder FactorAutoEncoder'
    )
    assert [name for name in names.split() if MMKD_MODELS.get(f'mmkd.{name}') is None] == []
