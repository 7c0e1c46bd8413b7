"""`ExplorationLoss` with its coders. Shapes: `N` images, `B, C` channels, `H, W` cells."""

import math
from importlib import import_module

import pytest
import torch
from torch import Tensor

from mmkd.models.connectors.exploration_coder import ExplorationCoder, FactorAutoEncoder
from mmkd.models.losses.exploration_loss import ExplorationLoss


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def factors(seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[tuple, tuple]:
    """Student's and teacher's side of the loss."""
    maps = [draw(2, c, 3, 4, seed=seed + i, dtype=dtype) for i, c in enumerate((2, 2, 2, 5, 5))]
    return tuple(maps[:2]), tuple(maps[2:])


def coders(student: int = 6, teacher: int = 10) -> tuple[ExplorationCoder, FactorAutoEncoder]:
    torch.manual_seed(0)
    own = ExplorationCoder(in_channels=student, factor_channels=8)
    return own, FactorAutoEncoder(in_channels=teacher, factor_channels=8)


def naive_distance(x: Tensor, y: Tensor) -> float:
    total = 0.0
    for a, b in zip(x, y, strict=True):
        a, b = a.flatten().tolist(), b.flatten().tolist()
        na, nb = (math.sqrt(sum(v * v for v in u)) for u in (a, b))
        total += sum(abs(u / na - v / nb) for u, v in zip(a, b, strict=True)) / len(a)
    return total / len(x)


@pytest.mark.parametrize('scale_free', [True, False])
def test_equals_a_naive_loop(scale_free: bool) -> None:
    (inherit, explore), (factor, reconstruction, feature) = factors()
    d = factor[0].numel()
    scale = math.sqrt(d) if scale_free else 1
    energies = [[float((part[i] ** 2).sum()) for part in (reconstruction, feature)] for i in range(2)]
    errors = ((reconstruction - feature) ** 2).sum((1, 2, 3)) / torch.tensor([max(e) for e in energies])
    expected = scale * (0.7 * naive_distance(factor, inherit) - 0.3 * naive_distance(factor, explore))
    loss = ExplorationLoss(
        inherit_weight=0.7, explore_weight=0.3, reconstruction_weight=2.0, scale_free=scale_free, loss_weight=5.0
    )
    value = loss((inherit, explore), (factor, reconstruction, feature))
    assert value.item() == pytest.approx(5 * (expected + 2 * errors.mean().item()), rel=1e-5)


def test_distance_equals_the_factor_transfer_loss_of_mmrazor() -> None:
    theirs = import_module('mmrazor.models.losses').FTLoss()
    (inherit, explore), (factor, _, feature) = factors()
    loss = ExplorationLoss(inherit_weight=1.0, explore_weight=0.0, scale_free=False)
    torch.testing.assert_close(
        loss((inherit, explore), (factor, feature, feature)), theirs(inherit, factor), check_dtype=False
    )


def test_cosine_form_asks_for_independence() -> None:
    (inherit, _), (factor, _, feature) = factors()
    loss = ExplorationLoss(inherit_weight=0.0, explore_weight=1.0, explore='cosine')
    assert loss((inherit, factor), (factor, feature, feature)).item() == pytest.approx(1)
    assert loss((inherit, -factor), (factor, feature, feature)).item() == pytest.approx(1)
    orthogonal = factor.clone()
    orthogonal[:, 0], orthogonal[:, 1] = -factor[:, 1], factor[:, 0]
    assert loss((inherit, orthogonal), (factor, feature, feature)).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize('shape', [(2, 2, 3, 4), (1, 1, 1, 1), (3, 8, 20, 31)])
def test_push_is_bounded(shape: tuple) -> None:
    """sqrt(D) times the mean difference of unit vectors is at most 2: reached by opposite vectors of equal entries."""
    loss = ExplorationLoss(inherit_weight=0.0, explore_weight=1.0)
    feature = torch.ones(shape[0], 1, *shape[2:], dtype=torch.float64)
    ones = torch.ones(shape, dtype=torch.float64)
    assert loss((ones, -ones), (ones, feature, feature)).item() == pytest.approx(-2)
    for seed in range(5):
        factor, explore = draw(*shape, seed=seed), 100 * draw(*shape, seed=seed + 50)
        assert loss((factor, explore), (factor, feature, feature)).item() >= -2 - 1e-9


def test_inheriting_part_is_pulled_and_exploring_part_pushed_away() -> None:
    own, guide = coders()
    teacher, loss = draw(2, 10, 6, 7, dtype=torch.float32), ExplorationLoss(inherit_weight=1.0, explore_weight=1.0)
    feature = torch.nn.Parameter(draw(2, 6, 6, 7, seed=1, dtype=torch.float32))
    optimiser = torch.optim.Adam([feature, *own.parameters(), *guide.parameters()], lr=0.01)

    def distances() -> list[float]:
        with torch.no_grad():
            return [naive_distance(guide(teacher)[0], part) for part in own(feature)]

    before = distances()
    for _ in range(60):
        optimiser.zero_grad()
        loss(own(feature), guide(teacher)).backward()
        optimiser.step()
    after = distances()
    assert after[0] < 0.8 * before[0]
    assert after[1] > before[1]


def test_gradients_stay_on_their_own_part_of_the_channels() -> None:
    own, guide = coders()
    feature = draw(2, 6, 3, 4, dtype=torch.float32).requires_grad_()
    teacher = draw(2, 10, 3, 4, seed=1, dtype=torch.float32).requires_grad_()
    ExplorationLoss(explore_weight=0.0)(own(feature), guide(teacher)).backward()
    assert feature.grad[:, :3].abs().max() > 0
    assert feature.grad[:, 3:].abs().max() == 0
    assert teacher.grad is None
    assert all(p.grad.abs().max() > 0 for p in guide.parameters())


def test_matching_terms_do_not_move_the_auto_encoder() -> None:
    own, guide = coders()
    feature, teacher = draw(2, 6, 3, 4, dtype=torch.float32), draw(2, 10, 3, 4, seed=1, dtype=torch.float32)
    factor, _, target = guide(teacher)
    ExplorationLoss()(own(feature), (factor, target, target)).backward()
    assert all(p.grad is None for p in guide.parameters())


@pytest.mark.parametrize(('channels', 'ratio', 'inherited'), [(6, 0.5, 3), (2, 0.1, 1), (3, 0.9, 2), (7, 0.5, 4)])
def test_each_part_has_at_least_one_channel(channels: int, ratio: float, inherited: int) -> None:
    module = ExplorationCoder(in_channels=channels, factor_channels=3, inherit_ratio=ratio)
    assert module.inherited == inherited
    assert [f.shape for f in module(torch.randn(2, channels, 5, 3))] == [(2, 3, 5, 3)] * 2


@pytest.mark.parametrize(
    ('student', 'teacher', 'width'), [(16, 32, 24), (256, 256, 64), (4, 4, 8), (16, None, 64), (None, 32, 64)]
)
def test_both_sides_agree_on_a_width_that_suits_the_channels(
    student: int | None, teacher: int | None, width: int
) -> None:
    own = ExplorationCoder(in_channels=student, out_channels=teacher) if student else None
    guide = FactorAutoEncoder(in_channels=teacher, out_channels=student) if teacher else None
    factors = [
        *(own(torch.randn(1, student, 3, 3)) if own else ()),
        *([guide(torch.randn(1, teacher, 3, 3))[0]] if guide else ()),
    ]
    assert {factor.shape[1] for factor in factors} == {width}


def test_coders_take_no_statistics_over_the_batch_and_one_cell_works() -> None:
    own, guide = coders()
    x, t = draw(3, 6, 4, 5, dtype=torch.float32), draw(3, 10, 4, 5, seed=1, dtype=torch.float32)
    for module, value in ((own, x), (guide, t)):
        for whole, single in zip(module(value), module(value[:1]), strict=True):
            torch.testing.assert_close(whole[:1], single, rtol=1e-4, atol=1e-5)
        assert all(part.isfinite().all() for part in module(value[:1, :, :1, :1]))


def test_gradients_are_right_and_finite_for_dead_factors() -> None:
    student, teacher = factors()
    for explore in ('l1', 'cosine'):
        loss = ExplorationLoss(explore=explore)
        inputs = [part.clone().requires_grad_() for part in student]
        assert torch.autograd.gradcheck(lambda *parts, loss=loss: loss(parts, teacher), inputs)
        dead = [torch.zeros_like(part, requires_grad=True) for part in student]
        loss(dead, teacher).backward()
        assert all(part.grad.isfinite().all() for part in dead)


def test_autocast_is_off_inside_the_loss() -> None:
    student, teacher = factors(dtype=torch.float32)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        inside = ExplorationLoss()(student, teacher)
    assert torch.equal(inside, ExplorationLoss()(student, teacher))


@pytest.mark.parametrize('name', ['mask', 'labels', 'avg_factor'])
def test_refuses_arguments_it_cannot_use(name: str) -> None:
    student, teacher = factors()
    with pytest.raises(ValueError, match=f'cannot use {name}'):
        ExplorationLoss()(student, teacher, **{name: torch.ones(1)})


def test_refuses_what_does_not_fit() -> None:
    student, teacher = factors()
    with pytest.raises(TypeError, match='two factors of ExplorationCoder'):
        ExplorationLoss()(student[0], teacher)
    with pytest.raises(TypeError, match='auto-encoding connector'):
        ExplorationLoss()(student, teacher[0])
    with pytest.raises(ValueError, match='same shape'):
        ExplorationLoss()((student[0], student[1][:, :1]), teacher)
    with pytest.raises(ValueError, match='each two must be equal'):
        ExplorationLoss()(student, (teacher[0][:, :1], *teacher[1:]))
    with pytest.raises(ValueError, match="explore must be 'l1' or 'cosine'"):
        ExplorationLoss(explore='l2')
    with pytest.raises(ValueError, match='reconstruction_weight > 0'):
        ExplorationLoss(reconstruction_weight=0.0)
    with pytest.raises(ValueError, match='factor_channels must be >= 2'):
        FactorAutoEncoder(in_channels=4, factor_channels=1)
    with pytest.raises(ValueError, match='in_channels must be >= 2'):
        ExplorationCoder(in_channels=1)
    with pytest.raises(ValueError, match=r'inherit_ratio must be in \(0, 1\)'):
        ExplorationCoder(in_channels=4, inherit_ratio=1.0)
