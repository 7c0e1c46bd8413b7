"""`AttentionMapLoss`. Shapes: `N` images, `C` channels, `H, W` cells."""

import math
from importlib import import_module
from types import ModuleType

import pytest
import torch
from torch import Tensor

from mmkd.models.losses.attention_map_loss import AttentionMapLoss

REDUCTIONS = ['sum', 'mean', 'norm']


@pytest.fixture(scope='module')
def mmrazor_losses() -> ModuleType:
    """MMRazor's losses; mmkd.compat makes them importable."""
    import_module('mmkd.compat')
    return import_module('mmrazor.models.losses')


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def naive(student: Tensor, teacher: Tensor, reduction: str) -> float:
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        maps = []
        for feature in (s, t):
            cells = [sum(v**2 for v in feature[:, y, x].tolist()) for y in range(s.shape[1]) for x in range(s.shape[2])]
            norm = math.sqrt(sum(v**2 for v in cells))
            maps.append([v / norm for v in cells])
        squares = [(a - b) ** 2 for a, b in zip(*maps, strict=True)]
        total += {'sum': sum(squares), 'mean': sum(squares) / len(squares), 'norm': math.sqrt(sum(squares))}[reduction]
    return total / len(student)


@pytest.mark.parametrize('reduction', REDUCTIONS)
@pytest.mark.parametrize(('shape_s', 'shape_t'), [((2, 3, 4, 5), (2, 6, 4, 5)), ((1, 1, 7, 2), (1, 1, 7, 2))])
def test_equals_a_naive_loop(reduction: str, shape_s: tuple, shape_t: tuple) -> None:
    student, teacher = draw(*shape_s), draw(*shape_t, seed=1)
    loss = AttentionMapLoss(reduction=reduction, loss_weight=3.0)(student, teacher)
    assert loss.item() == pytest.approx(3 * naive(student, teacher, reduction), rel=1e-9)


def test_mean_equals_mmrazor(mmrazor_losses: ModuleType) -> None:
    student, teacher = draw(2, 8, 9, 12, dtype=torch.float32), draw(2, 8, 9, 12, seed=1, dtype=torch.float32)
    torch.testing.assert_close(
        AttentionMapLoss(reduction='mean')(student, teacher), mmrazor_losses.ATLoss()(student, teacher)
    )


@pytest.mark.parametrize(('mode', 'reduction'), [('code', 'mean'), ('paper', 'norm')])
def test_equals_torchdistill_in_both_of_its_modes(mode: str, reduction: str) -> None:
    mid_level = pytest.importorskip('torchdistill.losses.mid_level')
    student, teacher = draw(2, 8, 9, 12), draw(2, 8, 9, 12, seed=1)
    pair = dict(pair={side: dict(io='output', path='layer') for side in ('student', 'teacher')})
    theirs = mid_level.ATLoss(pair, mode=mode)
    expected = theirs(*(dict(layer=dict(output=feature)) for feature in (student, teacher)))
    torch.testing.assert_close(AttentionMapLoss(reduction=reduction)(student, teacher), expected)


def test_matches_the_golden_numbers() -> None:
    """Mean 3.7419159e-4 and sum 0.38317218 on 32 x 32; notes/papers.md section 9."""
    g = torch.Generator().manual_seed(0)
    torch.randn(8, 21, generator=g), torch.randn(8, 21, generator=g), torch.randint(0, 21, (8,), generator=g)
    student, *_ = [torch.randn(2, 8, h, h, generator=g) for h in (32, 16, 8)]
    teacher = torch.randn(2, 8, 32, 32, generator=g)
    assert AttentionMapLoss(reduction='mean')(student, teacher).item() == pytest.approx(3.7419159e-4, rel=1e-5)
    assert AttentionMapLoss(reduction='sum')(student, teacher).item() == pytest.approx(0.38317218, rel=1e-5)


def test_the_sum_does_not_depend_on_the_grid_and_the_mean_does() -> None:
    """Each cell repeated 4 times: the same attention on a grid with 4 times the cells."""
    student, teacher = draw(2, 3, 4, 5), draw(2, 3, 4, 5, seed=1)
    fine = [x.repeat_interleave(2, 2).repeat_interleave(2, 3) for x in (student, teacher)]
    for reduction, factor in (('sum', 1), ('norm', 1), ('mean', 1 / 4)):
        loss = AttentionMapLoss(reduction=reduction)
        torch.testing.assert_close(loss(*fine), factor * loss(student, teacher))


@pytest.mark.parametrize('reduction', ['sum', 'norm'])
def test_attention_on_different_cells_reaches_the_upper_bound(reduction: str) -> None:
    student, teacher = torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 4)
    student[..., 0, 0], teacher[..., 2, 3] = 5.0, 7.0
    bound = 2 if reduction == 'sum' else math.sqrt(2)
    assert AttentionMapLoss(reduction=reduction)(student, teacher).item() == pytest.approx(bound)


@pytest.mark.parametrize('reduction', REDUCTIONS)
def test_equal_and_dead_features_give_zero_and_finite_gradients(reduction: str) -> None:
    loss = AttentionMapLoss(reduction=reduction)
    for feature in (draw(2, 3, 4, 5), torch.zeros(2, 3, 4, 5), torch.ones(1, 1, 1, 1)):
        student = feature.clone().requires_grad_()
        value = loss(student, feature)
        value.backward()
        assert value.item() == 0
        assert student.grad.isfinite().all()


@pytest.mark.parametrize('reduction', REDUCTIONS)
def test_gradients_are_right_and_none_reaches_the_teacher(reduction: str) -> None:
    student, teacher = draw(2, 2, 3, 2).requires_grad_(), draw(2, 3, 3, 2, seed=1).requires_grad_()
    loss = AttentionMapLoss(reduction=reduction)
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher), student)
    loss(student, teacher).backward()
    assert teacher.grad is None


def test_autocast_is_off_inside() -> None:
    student, teacher = draw(2, 3, 4, 5, dtype=torch.float32), draw(2, 3, 4, 5, seed=1, dtype=torch.float32)
    loss = AttentionMapLoss()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        inside = loss(student, teacher)
    assert torch.equal(inside, loss(student, teacher))


@pytest.mark.parametrize('name', ['mask', 'labels', 'avg_factor'])
def test_refuses_arguments_it_cannot_use(name: str) -> None:
    feature = torch.zeros(1, 1, 2, 3)
    with pytest.raises(ValueError, match=f'cannot use {name}'):
        AttentionMapLoss()(feature, feature, **{name: torch.ones(1)})


def test_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match='agree in N, H and W'):
        AttentionMapLoss()(torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 5))
    with pytest.raises(ValueError, match='reduction must be'):
        AttentionMapLoss(reduction='max')
    with pytest.raises(ValueError, match='p must be >= 1'):
        AttentionMapLoss(p=0.5)
    with pytest.raises(ValueError, match='loss_weight must be >= 0'):
        AttentionMapLoss(loss_weight=-1.0)
