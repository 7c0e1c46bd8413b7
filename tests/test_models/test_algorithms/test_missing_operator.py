"""A layer whose operator the CPU lacks: named before training, or lent a GPU for the dry forward."""

import pytest
import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from mmkd.engine.dry_step import step_problem
from mmkd.models.algorithms import missing_operator
from mmkd.models.algorithms.missing_operator import MissingOperatorError, lent_operators

from .conftest import build_algorithm, build_teacher, neck_distiller, small

CARAFE = dict(type='carafe', up_kernel=5, up_group=1, encoder_kernel=3, encoder_dilation=1, compressed_channels=8)


def with_carafe(channels: int = 16) -> nn.Module:
    """RetinaNet with mmcv's CARAFE, which has no CPU implementation, between the levels of its pyramid."""
    model = small('retinanet', channels=channels)
    levels = dict(in_channels=[8, 16, 32, 64], out_channels=channels, start_level=1, num_outs=5)
    model['neck'] = dict(type='FPN_CARAFE', upsample_cfg=CARAFE, **levels)
    return MODELS.build(model)


@pytest.mark.parametrize('side', ['student', 'teacher'])
def test_the_layer_is_named_where_there_is_no_gpu(side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(missing_operator, 'gpu_of_this_process', lambda: None)
    network = with_carafe()
    sides = dict(architecture=network) if side == 'student' else dict(teacher=network)
    said = rf"The {side} RetinaNet, layer 'neck.upsample_modules.\d' \(CARAFEPack\), needs an operator that has no CPU"
    with pytest.raises(MissingOperatorError, match=said + r'.*\(carafe_\w+: .*no GPU.*replace the layer'):
        MODELS.build(
            dict(type='mmkd.TeacherStudentDistill', distiller=neck_distiller())
            | dict(architecture=small('retinanet'), teacher=build_teacher('retinanet'))
            | sides
        )
    assert not any('forward' in vars(layer) for layer in network.modules())


class NeedsGpu(nn.Module):
    """Works at `cuda:0` only; a GPU is played by a place that is only noted, the tensors stay."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.places = ['cpu']

    def to(self, device: object) -> 'NeedsGpu':
        """Note the place."""
        self.places.append(str(device))
        return self

    def forward(self, levels: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """As the operators of mmcv."""
        if self.places[-1] != 'cpu:0':
            raise RuntimeError('carafe_forward_impl: implementation for device cpu not found.\n')
        return tuple(level * self.weight for level in levels)


@pytest.mark.parametrize('side', ['student', 'teacher'])
def test_the_layer_alone_is_lent_a_gpu(side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(missing_operator, 'gpu_of_this_process', lambda: torch.device('cpu', 0))
    layer, network = NeedsGpu(), build_teacher('retinanet')
    network.neck = nn.Sequential(network.neck, layer)
    kwargs = dict(architecture=network, teacher=build_teacher('retinanet'))
    if side == 'teacher':
        kwargs = dict(architecture=small('retinanet'), teacher=network)
    model = MODELS.build(dict(type='mmkd.TeacherStudentDistill', distiller=neck_distiller(), **kwargs))
    assert layer.places == ['cpu', 'cpu:0', 'cpu', 'cpu:0', 'cpu'], 'to find a fitting input, and to record'
    assert step_problem(model) is None
    assert len(layer.places) > 5, 'the dry step lends too'
    assert layer.places[-1] == 'cpu'
    assert not any('forward' in vars(module) for module in network.modules())


def test_other_errors_of_a_layer_are_left_as_they_are() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1))
    with pytest.raises(RuntimeError, match='expected input'), lent_operators(student=network):
        network(torch.zeros(1, 2, 4, 4))


def test_a_network_without_such_layers_is_left_alone() -> None:
    model = build_algorithm('retinanet', neck_distiller())
    assert not any('forward' in vars(layer) for layer in [*model.modules(), *model.teacher.modules()])
