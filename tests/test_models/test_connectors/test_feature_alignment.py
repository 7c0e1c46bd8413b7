"""`FeatureAlignment`. Shapes: `N` images, `C` channels, `H, W` cells."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mmkd.models.connectors.feature_alignment import FeatureAlignment
from mmkd.models.losses.feature_alignment_loss import FeatureAlignmentLoss

STRIDES = (8, 16, 32)


def pyramid(channels: tuple, grids: tuple, seed: int = 0) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(2, c, *grid, generator=g) for c, grid in zip(channels, grids, strict=True))


def build(**options) -> FeatureAlignment:
    torch.manual_seed(0)
    defaults = dict(in_channels=(3, 4, 5), out_channels=(6, 7, 8), in_strides=STRIDES, out_strides=STRIDES)
    return FeatureAlignment(**defaults | options)


STUDENT = pyramid((3, 4, 5), ((12, 20), (6, 10), (3, 5)))


def test_each_student_level_serves_its_neighbours_among_the_teacher_levels() -> None:
    module = build()
    assert module.sources == [[0, 1], [0, 1, 2], [1, 2]]
    outputs = module(STUDENT)
    assert [tuple(o.shape) for o in outputs] == [(2, 6, 12, 20), (2, 7, 6, 10), (2, 8, 3, 5)]
    for level, output in enumerate(outputs):
        inputs = [s.clone().requires_grad_() for s in STUDENT]
        module(inputs)[level].sum().backward()
        reached = [i for i, s in enumerate(inputs) if s.grad is not None and s.grad.abs().max() > 0]
        assert reached == module.sources[level], output.shape


def test_fusion_equals_an_independent_reading() -> None:
    module = build()
    fusion = module.fusions[1]
    with torch.no_grad():
        fusion.score.weight.normal_()
    maps = [
        F.conv2d(F.adaptive_avg_pool2d(STUDENT[0], (6, 10)), fusion.project[0].weight, fusion.project[0].bias),
        F.conv2d(STUDENT[1], fusion.project[1].weight, fusion.project[1].bias),
        F.conv2d(
            F.interpolate(STUDENT[2], size=(6, 10), mode='bilinear', align_corners=False),
            fusion.project[2].weight,
            fusion.project[2].bias,
        ),
    ]
    scores = [(m * fusion.score.weight.reshape(1, -1, 1, 1)).sum(1, keepdim=True) + fusion.score.bias for m in maps]
    total = sum(s.exp() for s in scores)
    expected = sum(m * s.exp() / total for m, s in zip(maps, scores, strict=True))
    torch.testing.assert_close(module(STUDENT)[1], expected, rtol=1e-4, atol=1e-5)


def test_at_the_start_the_sources_count_alike() -> None:
    fusion = build(reach=0)
    assert [len(sources) for sources in fusion.sources] == [1, 1, 1]
    module = build()
    maps = [conv(torch.ones(1, c, 4, 4)) for conv, c in zip(module.fusions[1].project, (3, 4, 5), strict=True)]
    ones = tuple(torch.ones(1, c, 4, 4) for c in (3, 4, 5))
    torch.testing.assert_close(module(ones)[1], sum(maps) / 3)


def test_other_strides_and_level_counts_take_the_teachers_grids() -> None:
    module = build(out_channels=(6, 6), out_strides=(4, 64))
    teacher = pyramid((6, 6), ((23, 39), (2, 3)))
    assert [tuple(o.shape) for o in module(STUDENT, teacher)] == [(2, 6, 23, 39), (2, 6, 2, 3)]
    with pytest.raises(ValueError, match=r"grid of stride 4 is not among the student's"):
        module(STUDENT)


def test_a_teacher_level_out_of_reach_takes_the_nearest_student_level() -> None:
    assert build(out_strides=(1, 16, 256)).sources == [[0], [0, 1, 2], [2]]
    assert build(out_strides=(8, 64, 128), mode='segments').sources == [[0], [2], [2]]


def test_segments_repeat_the_teachers_channels_from_one_level() -> None:
    module = build(mode='segments', num_segments=3)
    outputs = module(STUDENT)
    assert [o.shape[1] for o in outputs] == [18, 21, 24]
    conv = module.fusions[2].project[0]
    torch.testing.assert_close(outputs[2], F.conv2d(STUDENT[2], conv.weight, conv.bias))


@pytest.mark.parametrize('mode', ['levels', 'segments'])
def test_single_maps_work_and_give_single_maps(mode: str) -> None:
    module = FeatureAlignment(in_channels=3, out_channels=6, in_strides=8, out_strides=8, mode=mode, num_segments=2)
    output = module(STUDENT[0], torch.zeros(2, 6, 12, 20))
    assert output.shape == (2, 12 if mode == 'segments' else 6, 12, 20)


def test_without_strides_levels_correspond_one_by_one() -> None:
    assert build(in_strides=None, out_strides=None).sources == build().sources


def test_every_parameter_is_trained_even_with_one_cell_a_level() -> None:
    module = build()
    tiny = pyramid((3, 4, 5), ((2, 3), (1, 2), (1, 1)))
    sum(o.square().sum() for o in module(tiny)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize('mode', ['levels', 'segments'])
def test_gradients_are_right(mode: str) -> None:
    module = build(mode=mode, num_segments=2).double()
    small = [torch.randn(1, c, *g, dtype=torch.float64, requires_grad=True) for c, g in ((3, (4, 6)), (4, (2, 3)))]
    top = torch.randn(1, 5, 1, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *levels: module(levels), (*small, top))


@pytest.mark.parametrize('mode', ['levels', 'segments'])
def test_training_brings_the_students_distribution_to_the_teachers(mode: str) -> None:
    """Squared distance of the channel means and deviations over the data, aligned student to teacher: falls tenfold."""
    grids = ((12, 20), (6, 10), (3, 5))
    teacher = tuple(3 + 2 * level for level in pyramid((6, 7, 8), grids, seed=1))
    torch.manual_seed(0)
    student = torch.nn.ModuleList(torch.nn.Conv2d(6 + i, 3 + i, 1) for i in range(3))
    module, loss = build(mode=mode, num_segments=2), FeatureAlignmentLoss()
    optimiser = torch.optim.Adam([*student.parameters(), *module.parameters()], lr=0.03)

    def aligned() -> tuple[Tensor, ...]:
        return module([conv(level) for conv, level in zip(student, teacher, strict=True)])

    def gap() -> float:
        with torch.no_grad():
            values = [(o.unflatten(1, (-1, t.shape[1])).mean(1), t) for o, t in zip(aligned(), teacher, strict=True)]
            means = [(s.mean((0, 2, 3)) - t.mean((0, 2, 3))).square().mean() for s, t in values]
            spreads = [(s.std((0, 2, 3)) - t.std((0, 2, 3))).square().mean() for s, t in values]
            return float(sum(means) + sum(spreads))

    before = gap()
    for _ in range(80):
        optimiser.zero_grad()
        sum(loss(o, t) for o, t in zip(aligned(), teacher, strict=True)).backward()
        optimiser.step()
    assert gap() < before / 10


def test_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match='need as many strides'):
        build(out_strides=(8, 16))
    with pytest.raises(ValueError, match="mode must be 'levels' or 'segments'"):
        build(mode='all')
    with pytest.raises(ValueError, match='num_segments >= 1'):
        build(num_segments=0)
    with pytest.raises(ValueError, match='Expected 3 student and 3 teacher levels, got 2 and None'):
        build()(STUDENT[:2])
