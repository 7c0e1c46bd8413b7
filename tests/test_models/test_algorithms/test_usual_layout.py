"""Operators of mmcv that read maps by address under a teacher in channels_last."""

from contextlib import nullcontext

import pytest
import torch
from mmcv.ops import DeformConv2dPack, ModulatedDeformConv2dPack
from torch import nn

from mmkd.models.algorithms import teacher as teacher_module
from mmkd.models.algorithms.cheap_teacher import make_cheap, relative_difference
from mmkd.models.algorithms.teacher_options import TeacherOptionError, TeacherOptions

from .conftest import batch, build_algorithm, build_teacher, losses_of, neck_distiller


def deformed(kind: type[nn.Module]) -> nn.Module:
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), kind(8, 8, 3, padding=1), nn.Conv2d(8, 4, 1)).eval()
    for parameter in network.parameters():  # offsets begin at 0, where layouts differ less
        nn.init.normal_(parameter, std=0.3)
    return network


@pytest.mark.parametrize('kind', [ModulatedDeformConv2dPack, DeformConv2dPack])
def test_deformable_convolutions_compute_the_same(kind: type[nn.Module]) -> None:
    image = torch.randn(2, 3, 12, 10, generator=torch.Generator().manual_seed(0))
    network = deformed(kind)
    with torch.no_grad():
        before = network(image)
        make_cheap(network, TeacherOptions(channels_last=True), lambda: network(image))
        after = network(image.contiguous(memory_format=torch.channels_last))
        assert relative_difference([before], [after]) < 1e-5
        assert network[2].weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ('options', 'difference', 'refused'),
    [
        (dict(channels_last=True), 0.06, True),
        (dict(channels_last=True), 0.04, False),
        (dict(precision='bf16', fold_bn=True), 0.15, False),
        (dict(precision='bf16', fold_bn=True), 0.22, True),
    ],
)
def test_features_that_differ_by_more_than_rounding_are_refused(
    options: dict, difference: float, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher_module, 'relative_difference', lambda before, after: difference)
    model = build_algorithm('retinanet', neck_distiller(), dict(config=build_teacher('retinanet'), **options))
    model.init_weights()
    with pytest.raises(TeacherOptionError, match=f'differ by {100 * difference:.2g} %') if refused else nullcontext():
        losses_of(model.train(), batch())
